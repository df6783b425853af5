"use strict";

const form = document.getElementById("form");
const answers = document.getElementById("answers");
const againButton = document.getElementById("again");
let last = null; // the last request, key and all

const random = (bytes) =>
  Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, "0")).join("");

function draw() {
  const field = (name) => form.elements.namedItem(name).value; // `elements.item` is a method
  const what = field("what");
  const body = {
    charges: () => ({ order_id: "order-" + random(3), amount: Math.round(field("euros") * 100) }),
    orders: () => ({ item: field("item"), quantity: Number(field("quantity")) }),
  }[what]();
  return { path: "/" + what, key: random(12), body: JSON.stringify(body) };
}

async function send(request, how) {
  const started = performance.now();
  let shown;
  try {
    const answer = await fetch(request.path, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": request.key },
      body: request.body,
    });
    shown = {
      status: answer.status,
      replayed: answer.headers.get("idempotent-replayed") === "true",
      text: await answer.text(),
    };
  } catch (error) {
    shown = { status: "no response", replayed: false, text: String(error) };
  }
  show(request, how, shown, Math.round(performance.now() - started));
}

function element(name, text, kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
}

function show(request, how, answer, milliseconds) {
  const head = element("div", "", "head");
  head.append(element("b", answer.status));
  if (answer.replayed) head.append(element("span", "replayed: nothing happened again", "badge warm"));
  else if (answer.status === 201) head.append(element("span", "done", "badge good"));
  else head.append(element("span", "refused", "badge bad"));
  head.append(element("span", `${how}, ${milliseconds} ms`, "what"));
  const item = document.createElement("li");
  item.append(head, element("code", answer.text, "body"), element("code", "key " + request.key));
  answers.prepend(item);
  while (answers.children.length > 6) answers.lastChild.remove();
}

async function act(requests, how) {
  last = requests[0];
  againButton.disabled = false;
  await Promise.all(requests.map((request) => send(request, how)));
  await refresh();
}

async function refresh() {
  try {
    const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    document.getElementById("books").replaceWith(page.getElementById("books"));
  } catch {
    // The shop is down for a moment; the next look will tell.
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  act([draw()], "sent");
});
againButton.addEventListener("click", () => act([last], "the same again"));
document.getElementById("double").addEventListener("click", () => {
  if (!form.reportValidity()) return;
  const request = draw();
  act([request, request], "double-click");
});
form.addEventListener("change", () => {
  for (const fields of form.querySelectorAll(".fields")) {
    fields.hidden = fields.dataset.for !== form.elements.what.value;
  }
});
setInterval(() => document.hidden || refresh(), 2000);
