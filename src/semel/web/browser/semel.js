// semel.js: forms and fetch calls that can be sent again. No dependency; runs under a strict CSP.
//
// THE RULE OF SAMENESS. The same form (action, id or name) with the same content in the same visit
// of the page is the same operation and keeps its key: a double-click, a reload, the back button.
// Anything changed in the form makes a new operation. A fresh visit makes a new one too, unless the
// answer to the same content is still not known: then it is a resend.
// A visit is one entry of the tab's history. Resetting the form starts over.
//
// sessionStorage holds, of each form's last 20 submissions, the key, a hash of the content (a file
// counts by name, size and date), the visits, and whether the answer is known. Never a field.
//
// Pages are served semel.min.js, which is made from this file: see docs/guides/browser.md.
(() => {
  const Signal = AbortSignal;
  // Older browsers are left with plain forms and their hidden field.
  if (!Signal.any) return;

  const HEADER = "Idempotency-Key";
  const FIELD = "idempotency_key";
  const semel = { timeout: 30000, tries: 6, key: take, fetch: fetchAgain };
  const limit = () => Signal.timeout(semel.timeout);
  const attribute = (element, name) => element?.getAttribute(name);
  const header = (answer, name) => answer?.headers.get(name);
  const { parse, stringify } = JSON;
  const TYPE = "content-type";
  const on = addEventListener;
  const page = document;

  // --- keys: handed out with the page, refilled at the low-water mark, else random ---

  const tag = page.querySelector("script[data-semel-keys]");
  const arrival = performance.getEntriesByType("navigation")[0]?.type;
  let pool = [];
  let filling;

  const add = ({ keys, not_after }) => keys.map((key) => pool.push({ key, end: Date.parse(not_after) }));

  // History and a duplicated tab bring the page from the cache, with keys that have been taken.
  if (tag && arrival != "back_forward") add(parse(tag.textContent));

  async function refill() {
    try {
      const answer = await fetch(tag.dataset.semelKeys, {
        method: "POST",
        headers: { [TYPE]: "application/json" },
        body: '{"count":10}',
        signal: limit(),
      });
      add(await answer.json());
    } catch {
      // Not the answer with keys: random ones will do, or the next call tries again.
    }
    filling = 0;
  }

  async function take() {
    pool = pool.filter(({ end }) => !(end < Date.now()));
    if (tag && !pool[2]) {
      filling ||= refill();
      if (!pool[0]) await filling;
    }
    return pool.shift()?.key ?? crypto.getRandomValues(new Uint32Array(4)).join("-");
  }

  // --- one request, until its answer is known or the tries are used up ---

  const tell = (target, name, detail) => {
    target.setAttribute?.("data-semel-state", name);
    return target.dispatchEvent(new CustomEvent("semel:" + name, { bubbles: true, cancelable: true, detail }));
  };

  async function send(request, target) {
    const { headers, signal } = request;
    const until = (begin) =>
      new Promise((go) => {
        signal.onabort = go;
        begin(go);
      });
    for (let attempt = 1; ; attempt++) {
      const detail = { key: headers.get(HEADER), attempt, problem: "" };
      if (!navigator.onLine) {
        tell(target, "offline", detail);
        await until((go) => on("online", go, { once: true }));
      }
      tell(target, "send", detail);
      let answer;
      try {
        answer = await fetch(request.clone(), { signal: Signal.any([signal, limit()]) });
        const problem = /problem.json/.test(header(answer, TYPE));
        // A cut in the body is a lost answer too.
        if (problem || target != page) detail.text = await answer.clone().text();
        if (problem) detail.problem = parse(detail.text).type;
        detail.answer = answer;
      } catch (error) {
        if (signal.aborted) throw error;
        answer = null;
        detail.error = error;
      }
      const again = !answer || /^(408|42[59]|50[234])|in-flight$/.test(answer.status + detail.problem);
      const after = header(answer, "retry-after");
      const pause = (after > 0 ? after * 1000 : new Date(after) - new Date()) || 0;
      // Without a key (a no-cors request takes none) nothing is sent twice.
      if (!again || !detail.key || attempt >= semel.tries || pause > 60000) {
        detail.unknown = again || /outcome-unknown$|key-(expired|reused)$/.test(detail.problem);
        if (detail.unknown) tell(target, "unknown", detail);
        return detail;
      }
      // Full jitter, and never earlier than the server asks for.
      detail.delay = Math.max(pause, Math.random() * Math.min(20000, 250 * 2 ** attempt));
      tell(target, "wait", detail);
      await until((go) => setTimeout(go, detail.delay));
    }
  }

  async function fetchAgain(url, init) {
    const request = new Request(url, init);
    const { headers } = request;
    if (!headers.has(HEADER)) headers.set(HEADER, await take());
    const { answer, error } = await send(request, page);
    if (!answer) throw error;
    return answer;
  }

  // --- forms ---

  let store = {};
  try {
    store = sessionStorage;
  } catch {}

  const place = (form) => `semel ${attribute(form, "action")} ${attribute(form, "id") ?? attribute(form, "name")}`;
  const read = (at) => parse(store[at] ?? "[]");

  const hash = (text) => {
    let a = 1;
    let b = 2;
    for (const character of text) {
      a = Math.imul(a ^ character.codePointAt() ^ (b >>> 15), 16777619);
      b = Math.imul(b ^ a ^ (a >>> 13), 2246822519);
    }
    return a + "." + b;
  };

  const policy = (answer) => header(answer, "content-security-policy")?.replace(/nonce-[^']+/g, "");

  const busy = new Map();
  const lock = (form, button, state) => {
    form.ariaBusy = state;
    if (button) button.disabled = state;
    busy[state ? "set" : "delete"](form, button);
  };

  async function submit(form, button, url, multipart) {
    const headers = new Headers({ accept: "text/html,*/*" });
    const data = new FormData(form, button);
    // What differs from page to page, such as a CSRF token, goes beside the content.
    for (const input of form.querySelectorAll("[data-semel-header]")) {
      headers.set(input.dataset.semelHeader, input.value);
      data.delete(input.name);
    }
    const given = data.get(FIELD);
    const content = [...data].map(([name, value]) => name != FIELD && [name, value.name ? [value.name, value.size, value.lastModified] : value.name ?? value]);
    const sum = hash(stringify([url.href, content]));

    lock(form, button, true);

    const at = place(form);
    const known = read(at);
    // Without the Navigation API: each load is a visit, save by reload or history: the last one.
    const visit = self.navigation?.currentEntry?.id ?? (arrival == "navigate" ? performance.timeOrigin : known[0]?.seen.at(-1) ?? 0);
    let entry = known.find((e) => e.sum == sum && (!e.done || e.seen.includes(visit)));
    const fresh = !entry;
    entry ??= { sum, key: given && !known.some((e) => e.key == given) ? given : await take(), seen: [] };
    const save = () => {
      try {
        store[at] = stringify([entry, ...read(at).filter((e) => e.key != entry.key)].slice(0, 20));
      } catch {}
    };
    entry.seen.push(visit);
    save();

    headers.set(HEADER, entry.key);
    if (given) data.set(FIELD, entry.key);
    let body = data;
    if (!multipart) {
      headers.set(TYPE, "application/x-www-form-urlencoded");
      body = new URLSearchParams([...data].map(([name, value]) => [name, (value.name ?? value).replace(/\r?\n|\r/g, "\r\n")]));
    }
    const detail = await send(new Request(url, { method: "POST", headers, body }), form);
    const { answer, unknown } = detail;
    // 401, 403 and 409 say nothing of an earlier attempt whose answer was lost.
    // What is known stays known, whatever a later attempt is told.
    entry.done ||= !unknown && /^([23]|4(?!0[139]))/.test(answer.status);
    // Refused at first sight: nothing was ever done under this key, so it is not used again.
    if (fresh && detail.attempt == 1 && /key-(invalid|expired)$/.test(detail.problem)) entry.sum = 0;
    save();
    const show = !unknown && tell(form, "answer", detail);
    if (show && answer.redirected) {
      // Locked until the next page is there; pageshow unlocks it for those who come back.
      location = answer.url;
    } else {
      lock(form, button);
      if (
        show &&
        /^text.html/i.test(header(answer, TYPE)) &&
        // A browser would have saved it.
        !/^attach/i.test(header(answer, "content-disposition")) &&
        // It is shown under the policy of this page, so its own may be no other.
        (!policy(answer) || policy(answer) == policy(await fetch(location, { cache: "force-cache" })))
      ) {
        page.write(detail.text);
        page.close();
      }
    }
  }

  on("submit", (event) => {
    const { target: form, submitter } = event;
    const of = (name) => attribute(submitter, "form" + name) ?? attribute(form, name) ?? "";
    const url = new URL(of("action") || location, page.baseURI);
    if (event.defaultPrevented || !form.closest("[data-semel]") || !/post/i.test(of("method")) || of("target") || url.origin != origin) return;
    event.preventDefault();
    if (!busy.has(form)) submit(form, submitter, url, /multipart/.test(of("enctype")));
  });

  on("reset", (event) => event.defaultPrevented || delete store[place(event.target)]);

  on("pageshow", ({ persisted }) => persisted && busy.forEach((button, form) => lock(form, button)));

  self.semel = semel;
})();
