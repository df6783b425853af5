"use strict";
// What the pages have beyond plain forms: a word on what semel.js is doing, a second press at once,
// and tables that follow. Everything is sent by forms, or by semel.fetch.

const shown = document.getElementById("status");
const answers = document.getElementById("answers");

function tell(text) {
  shown.textContent = text;
}

async function refresh() {
  try {
    const page = new DOMParser().parseFromString(await (await fetch(location)).text(), "text/html");
    document.getElementById("books").replaceWith(page.getElementById("books"));
  } catch {
    // The shop is down for a moment; the next look will tell.
  }
}

// What a program would see of an answer.
function list(what, answer, text = "") {
  const item = document.createElement("li");
  const head = document.createElement("div");
  head.className = "head";
  const status = document.createElement("b");
  status.textContent = answer.status;
  head.append(status, what);
  if (answer.headers.get("idempotent-replayed")) {
    const mark = document.createElement("span");
    mark.className = "badge warm";
    mark.textContent = "replayed";
    head.append(mark);
  }
  item.append(head);
  if (text) {
    const code = document.createElement("code");
    code.textContent = text;
    item.append(code);
  }
  answers.prepend(item);
  while (answers.children.length > 6) answers.lastChild.remove();
}

document.addEventListener("semel:wait", ({ target, detail }) => {
  if (target === document) tell(`No response. Trying again with the same key (attempt ${detail.attempt + 1}) …`);
});

// An answer that semel.js leaves to the page: a refusal.
document.addEventListener("semel:answer", ({ detail }) => {
  if (detail.answer.redirected || detail.answer.ok) return;
  let said = {};
  try {
    said = JSON.parse(detail.text);
  } catch {}
  tell(`${detail.answer.status}: ${said.title ?? said.detail ?? "refused"}`);
  refresh();
});
document.addEventListener("semel:unknown", refresh);

for (const button of document.querySelectorAll("[data-press-twice]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    if (!button.form.reportValidity()) return;
    button.form.requestSubmit();
    button.form.requestSubmit();
  });
}

// By hand: the form as it stands, past semel.js, and the answer shown here.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-resend]")) return;
  event.preventDefault();
  const body = new URLSearchParams(new FormData(form, event.submitter)).toString();
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  try {
    const answer = await fetch(form.action, { method: "POST", headers, body });
    const title = answer.ok ? "" : (await answer.json()).title;
    tell(answer.ok ? "Sent again: the first answer, and no second payment." : `${answer.status}: ${title}`);
  } catch {
    tell("No answer. Nobody tries again here: press once more.");
  }
  refresh();
});
