"use strict";
// A small client of tus 1.0 (https://tus.io): create, send pieces, and after a cut ask how far it
// came. The upload's URL is remembered by the file, so that a reload goes on too.

const form = document.getElementById("upload");
const stop = document.getElementById("stop");
const bar = document.getElementById("progress");
const TUS = { "tus-resumable": "1.0.0" };
const PIECE = 1024 * 1024;
const TRIES = 8;
let cutting;

const pause = (attempt) => new Promise((go) => setTimeout(go, Math.random() * 200 * 2 ** attempt));
const encode = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

function remembered(file) {
  return `upload ${file.name} ${file.size} ${file.lastModified}`;
}

async function create(file) {
  const headers = { ...TUS, "upload-length": file.size, "upload-metadata": "filename " + encode(file.name) };
  const answer = await semel.fetch("/uploads/", { method: "POST", headers }); // its key: one upload
  if (answer.status !== 201) throw new Error((await answer.json()).title);
  return answer.headers.get("location");
}

// How far it came; -1: there is no such upload any more.
async function offset(url) {
  const answer = await fetch(url, { method: "HEAD", headers: TUS });
  return answer.ok ? Number(answer.headers.get("upload-offset")) : -1;
}

async function piece(url, file, at) {
  const headers = { ...TUS, "upload-offset": at, "content-type": "application/offset+octet-stream" };
  const body = file.slice(at, at + PIECE);
  const answer = await fetch(url, { method: "PATCH", headers, body, signal: cutting.signal });
  if (!answer.ok) throw new Error((await answer.json()).title);
  return Number(answer.headers.get("upload-offset"));
}

async function send(file) {
  const place = remembered(file);
  let url = sessionStorage[place];
  let at = url ? await offset(url) : -1;
  if (at >= 0) list(`goes on at byte ${at.toLocaleString("en")}`, { status: "HEAD", headers: new Headers() });
  if (at < 0) {
    url = sessionStorage[place] = await create(file);
    at = 0;
  }
  let failures = 0;
  while (at < file.size) {
    bar.value = at / file.size;
    try {
      at = await piece(url, file, at);
      failures = 0;
    } catch (error) {
      if (cutting.signal.aborted || ++failures >= TRIES) throw error;
      tell("No answer. Asking how far it came …");
      await pause(failures);
      at = Math.max(await offset(url).catch(() => at), 0);
    }
  }
  bar.value = 1;
  const headers = { "content-type": "application/json" };
  const answer = await semel.fetch("/files", { method: "POST", headers, body: JSON.stringify({ upload: url }) });
  const { digest, detail } = await answer.json();
  if (answer.ok) delete sessionStorage[place];
  list("POST /files", answer, digest ? "SHA-256 " + digest : detail);
  tell(answer.ok ? "Uploaded." : "");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  cutting = new AbortController();
  stop.disabled = false;
  tell("Sending …");
  try {
    await send(form.elements.file.files[0]);
  } catch (error) {
    tell(cutting.signal.aborted ? "Cut. Upload it again, and it goes on." : String(error.message));
  }
  stop.disabled = true;
  refresh();
});
stop.addEventListener("click", () => cutting.abort());
