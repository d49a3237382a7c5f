// Uploads an adapter's folder: what can be refused is refused before the bulk is sent, then the parts go
// straight to the object store with presigned URLs, a few at a time, each retried on its own.

const WANTED = ["adapter_config.json", "adapter_model.safetensors"];
const PICKLE = "adapter_model.bin";
const PARALLEL = 3;
const TRIES = 4;
const MAX_HEADER = 1 << 20;

export function startUploads() {
  const form = document.getElementById("upload");
  if (!form) return;
  const view = {
    form,
    folder: document.getElementById("folder"),
    chosen: document.getElementById("chosen"),
    meter: document.getElementById("meter"),
    progress: document.getElementById("progress"),
    text: document.getElementById("progress-text"),
    error: document.getElementById("upload-error"),
    submit: form.querySelector("button[type=submit]"),
    cancel: document.getElementById("upload-cancel"),
    drop: document.getElementById("drop"),
  };
  let files = [];
  const choose = (list) => {
    files = Array.from(list).map(({ file, name }) => ({ file, name }));
    showChoice(view, files);
  };
  view.folder.addEventListener("change", () => choose(topLevel(view.folder.files).map((file) => ({ file, name: file.name }))));
  for (const type of ["dragover", "dragleave", "drop"]) {
    view.drop.addEventListener(type, async (event) => {
      event.preventDefault();
      view.drop.classList.toggle("over", type === "dragover");
      if (type === "drop") choose(await dropped(event.dataTransfer));
    });
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await run(view, files, form.elements.name.value);
  });
}

async function run(view, files, name) {
  const abort = new AbortController();
  view.cancel.onclick = () => abort.abort();
  view.error.hidden = true;
  view.submit.disabled = true;
  view.cancel.hidden = false;
  view.meter.hidden = false;
  try {
    await upload(view, files, name, abort.signal);
    window.location.assign("/adapters");
  } catch (error) {
    view.meter.hidden = true;
    view.error.hidden = false;
    view.error.textContent = abort.signal.aborted ? "Upload cancelled." : error.message;
  } finally {
    view.submit.disabled = false;
    view.cancel.hidden = true;
  }
}

async function upload(view, files, name, signal) {
  const chosen = toSend(files);
  if (!chosen.length) throw new Error("Choose the adapter's folder first.");
  say(view, 0, "Checking…");
  const start = { files: chosen.map((f) => ({ name: f.name, bytes: f.file.size })), ...(await headers(chosen)) };
  const plan = await api(view, "POST", `/api/v1/adapters/${encodeURIComponent(name)}/versions`, start, signal);
  try {
    await sendParts(view, plan, chosen, signal);
    say(view, 100, "Finishing…");
    await api(view, "POST", `/api/v1/uploads/${plan.upload_id}/complete`, {}, signal);
  } catch (error) {
    await api(view, "DELETE", `/api/v1/uploads/${plan.upload_id}`).catch(() => {});
    throw error;
  }
}

// Not what else a trainer leaves in the folder. Where a file is missing, the server says what is wrong.
function toSend(files) {
  const named = (names) => files.filter((f) => names.includes(f.name));
  const wanted = named(WANTED);
  if (wanted.length === WANTED.length) return wanted;
  const some = named([...WANTED, PICKLE]);
  return some.length ? some : files;
}

// The configuration and the tensors' names and shapes: enough to refuse most mistakes at once.
async function headers(files) {
  const config = files.find((f) => f.name === WANTED[0]);
  const weights = files.find((f) => f.name === WANTED[1]);
  if (!config || !weights) return {};
  let parsed;
  try {
    parsed = JSON.parse(await config.file.text());
  } catch {
    throw new Error("adapter_config.json is not valid JSON.");
  }
  const length = new DataView(await weights.file.slice(0, 8).arrayBuffer());
  if (length.byteLength < 8) throw new Error("adapter_model.safetensors is empty or cut off.");
  const bytes = Number(length.getBigUint64(0, true));
  if (bytes > MAX_HEADER) throw new Error("adapter_model.safetensors has no valid header.");
  const header = new Uint8Array(await weights.file.slice(0, 8 + bytes).arrayBuffer());
  let binary = "";
  for (const byte of header) binary += String.fromCharCode(byte);
  return { config: parsed, header: btoa(binary) };
}

async function sendParts(view, plan, files, signal) {
  const total = files.reduce((sum, f) => sum + f.file.size, 0);
  const sent = new Map();
  const report = () => {
    const bytes = Array.from(sent.values()).reduce((a, b) => a + b, 0);
    say(view, total ? (100 * bytes) / total : 100, `${megabytes(bytes)} of ${megabytes(total)}`);
  };
  const queue = plan.files.flatMap((f) => {
    const source = files.find((c) => c.name === f.name).file;
    return f.parts.map((part) => ({ file: f.name, part, blob: source.slice(part.offset, part.offset + part.bytes) }));
  });
  const worker = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) {
      const key = `${job.file}/${job.part.number}`;
      const etag = await sendPart(job, (bytes) => { sent.set(key, bytes); report(); }, signal);
      const part = { file: job.file, number: job.part.number, etag, bytes: job.part.bytes };
      await api(view, "PUT", `/api/v1/uploads/${plan.upload_id}/parts`, { parts: [part] }, signal);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
}

async function sendPart(job, progress, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await put(job.part.url, job.blob, progress, signal);
    } catch (error) {
      if (signal.aborted || attempt === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 400 * 2 ** attempt));
    }
  }
}

// XMLHttpRequest, because fetch does not report the progress of a body.
function put(url, blob, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onerror = () => reject(new Error("The connection to the object store broke off."));
    request.onabort = () => reject(new Error("Upload cancelled."));
    request.onload = () => {
      const etag = request.getResponseHeader("ETag");
      if (request.status === 200 && etag) resolve(etag);
      else reject(new Error(`The object store answered ${request.status}.`));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(blob);
  });
}

async function api(view, method, path, body, signal) {
  const response = await fetch(path, {
    method,
    signal,
    headers: { "content-type": "application/json", "x-csrf-token": view.form.dataset.csrf },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => null);
  throw new Error(problem?.error?.message ?? `The server answered ${response.status}.`);
}

function showChoice(view, files) {
  const names = files.map((f) => f.name);
  const missing = WANTED.filter((n) => !names.includes(n));
  view.chosen.textContent = missing.length
    ? `Missing in this folder: ${missing.join(", ")}`
    : WANTED.map((n) => `${n} (${megabytes(files.find((f) => f.name === n).file.size)})`).join(", ");
}

// A chosen folder comes with all below it; checkpoints in it have files of the same names.
function topLevel(files) {
  return Array.from(files).filter((file) => file.webkitRelativePath.split("/").length <= 2);
}

// A dropped folder comes as an entry whose files must be asked for.
async function dropped(transfer) {
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = [];
  for (const entry of entries) {
    const inside = entry.isDirectory ? await new Promise((ok, no) => entry.createReader().readEntries(ok, no)) : [entry];
    for (const child of inside.filter((c) => c.isFile)) {
      const file = await new Promise((ok, no) => child.file(ok, no));
      found.push({ file, name: file.name });
    }
  }
  return found;
}

function say(view, percent, text) {
  view.progress.value = percent;
  view.text.textContent = text;
}

function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
