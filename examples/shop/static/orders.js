"use strict";
// PUT and DELETE of one order, which forms cannot do. Each press is a request with a key of its own
// (semel.fetch); what makes them the same is the number.

const form = document.getElementById("order");
const url = "/orders/" + form.dataset.number;
const field = (name) => form.elements.namedItem(name).value; // `elements.item` is a method

async function send(what, method, condition) {
  const init = { method, headers: { ...condition } };
  if (method === "PUT") {
    init.headers["content-type"] = "application/json";
    init.body = JSON.stringify({ item: field("item"), quantity: Number(field("quantity")) });
  }
  try {
    const answer = await semel.fetch(url, init);
    const text = await answer.text();
    list(what, answer, text.startsWith("{") ? JSON.parse(text).title ?? text : "");
    tell("");
  } catch {
    tell("No answer, however often it was asked for. Look at the table.");
  }
}

const create = () => send("PUT, If-None-Match: *", "PUT", { "if-none-match": "*" });

async function change() {
  const seen = await fetch(url);
  const tag = seen.headers.get("etag");
  if (!tag) return list("GET: nothing to change", seen);
  await send(`PUT, If-Match: ${tag}`, "PUT", { "if-match": tag });
}

const acts = {
  twice: () => Promise.all([create(), create()]),
  change,
  delete: () => send("DELETE", "DELETE", {}),
};

async function act(doing) {
  if (!form.reportValidity()) return;
  await doing();
  await refresh();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  act(create);
});
for (const button of form.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => act(acts[button.dataset.act]));
}
