"use strict";
// The page of a server: asks for renders, lists them, and shows one while it is made.

const $ = (id) => document.getElementById(id);
const OVER = ["done", "failed", "cancelled"];
const MOST_BLOCKS = 600; // more would be dots

let chosen = null; // id of the render that is shown
let playing = null; // id of the render whose video is loaded
let events = null;

function say(text) {
  $("note").textContent = text;
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) {
    const error = new Error(said.error ? said.error.message : answer.statusText);
    error.status = answer.status;
    throw error;
  }
  return said;
}

function guarded(work) {
  return async (event) => {
    if (event) event.preventDefault();
    try {
      say("");
      await work();
    } catch (error) {
      say(error.message);
    }
  };
}

async function open() {
  let session;
  try {
    session = await call("GET", "/session");
  } catch (error) {
    if (error.status !== 401) throw error;
    $("login").hidden = false;
    return;
  }
  $("login").hidden = true;
  $("desk").hidden = false;
  for (const name of session.presets) {
    $("preset").append(new Option(name, name, false, name === session.preset));
  }
  await list();
  setInterval(() => list().catch((error) => say(error.message)), 1000);
}

async function list() {
  const page = await call("GET", "/api/v1/renders?limit=30");
  $("empty").hidden = page.data.length > 0;
  const rows = page.data.map(row);
  $("queue").replaceChildren(...rows);
  const shown = page.data.find((one) => one.id === chosen);
  if (shown) draw(shown);
}

function row(render) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.render = render.id;
  button.setAttribute("aria-current", String(render.id === chosen));
  const words = document.createElement("span");
  words.className = "words";
  words.textContent = render.prompt;
  const state = document.createElement("span");
  state.className = `state ${render.status}`;
  state.textContent = render.place === null ? render.status : `${render.status} (${render.place} before it)`;
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = render.progress.fraction;
  button.append(words, state, bar);
  button.addEventListener("click", () => choose(render));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function choose(render) {
  if (chosen === render.id) return;
  chosen = render.id;
  playing = null;
  $("video").removeAttribute("src");
  $("video").load();
  $("right").hidden = false;
  if (events) events.close();
  events = new EventSource(render.links.events);
  events.addEventListener("progress", (event) => {
    const said = JSON.parse(event.data);
    if (render.id === chosen) draw({ ...render, ...said });
  });
  for (const name of OVER) {
    events.addEventListener(name, () => {
      events.close();
      list();
    });
  }
  draw(render);
}

function draw(render) {
  const progress = render.progress;
  $("title").textContent = render.prompt;
  const left = progress.eta_s === null ? "" : `, about ${Math.ceil(progress.eta_s)} s to go`;
  const error = render.error ? `: ${render.error.message}` : "";
  $("state").textContent =
    `${render.status}${error} - ${progress.frames} of ${progress.of} frames${left}`;
  $("bar").value = progress.fraction;
  drawBlocks(render);
  drawStages(progress.stages, render.status === "running");
  const over = OVER.includes(render.status);
  $("cancel").disabled = over;
  $("pause").disabled = over || render.status === "paused";
  $("resume").disabled = !["paused", "failed", "cancelled"].includes(render.status);
  $("change").querySelector("button").disabled = render.status !== "running";
  $("download").href = render.links.video;
  $("download").download = `${render.id}.mp4`;
  $("download").hidden = !(over && progress.frames > 0);
  if (progress.frames > 0 && playing !== render.id) play(render);
}

function play(render) {
  playing = render.id;
  $("video").src = render.links.video; // grows until the render is over
  $("video").play().catch(() => {});
}

function drawBlocks(render) {
  const progress = render.progress;
  const count = Math.min(progress.of_blocks, MOST_BLOCKS);
  const row = $("blocks");
  while (row.childElementCount > count) row.lastElementChild.remove();
  while (row.childElementCount < count) row.append(document.createElement("i"));
  for (let block = 0; block < count; block++) {
    const mark = row.children[block];
    const step = progress.in_flight[block];
    mark.className = block < progress.blocks ? "final" : "";
    mark.style.setProperty("--share", step === undefined ? 0 : step / progress.of_block_steps);
    mark.title = `block ${block}` + (step === undefined ? "" : `, step ${step}`);
  }
}

function drawStages(stages, running) {
  const boxes = stages.map((stage) => {
    const box = document.createElement("div");
    const busy = running && stage.busy !== null ? Math.round(100 * stage.busy) : null;
    box.textContent = `stage ${stage.stage + 1}` + (busy === null ? "" : `: ${busy}% busy`);
    box.style.setProperty("--share", busy === null ? 0 : busy / 100);
    return box;
  });
  $("stages").replaceChildren(...boxes);
}

$("login").addEventListener(
  "submit",
  guarded(async () => {
    await call("POST", "/session", { token: $("token").value });
    $("token").value = "";
    await open();
  }),
);

$("ask").addEventListener(
  "submit",
  guarded(async () => {
    const asked = { prompt: $("prompt").value, preset: $("preset").value, seed: Number($("seed").value) };
    const seconds = Number($("seconds").value);
    if (seconds) asked.seconds = seconds;
    const render = await call("POST", "/api/v1/renders", asked);
    await list();
    choose(render);
  }),
);

$("change").addEventListener(
  "submit",
  guarded(async () => {
    await call("POST", `/api/v1/renders/${chosen}/prompt`, { prompt: $("next").value });
    $("next").value = "";
  }),
);

for (const what of ["cancel", "pause", "resume"]) {
  $(what).addEventListener(
    "click",
    guarded(async () => {
      await call("POST", `/api/v1/renders/${chosen}/${what}`);
      await list();
    }),
  );
}

guarded(open)();
