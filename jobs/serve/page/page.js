"use strict";
// The page of a server: asks for renders, lists them, and shows one while it is made.

const $ = (id) => document.getElementById(id);
const OVER = ["done", "failed", "cancelled"];
const MOST_BLOCKS = 600; // more would be dots

let chosen = null; // id of the render that is shown
let playing = null; // id of the render whose video is loaded
let end = null; // when the render that is shown had ended, at the last look
let redone = false; // its video is whole while it is made: another will take its place
let loads = 0; // of videos
let events = null;
const rows = new Map(); // of the list, by id of their renders: one that is pressed must stay
let looks = 0; // at the list; an answer may be overtaken by a later one
let newest = 0;
let away = ""; // why the last look came to nothing

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
  if (!session.preset) $("preset").append(new Option("as the server has it", ""));
  for (const name of session.presets) {
    $("preset").append(new Option(name, name, false, name === session.preset));
  }
  await list();
  setInterval(look, 1000);
}

async function look() {
  try {
    await list();
    if (away) say((away = "")); // what it says of another call stays
  } catch (error) {
    say((away = error.message));
  }
}

async function list() {
  const look = ++looks;
  const asked = ["limit=30", "status=running&limit=30"].map((what) => call("GET", `/api/v1/renders?${what}`));
  const [last, made] = (await Promise.all(asked)).map((page) => page.data);
  // what is being made may be older than all of a long queue
  const found = [...made.filter((one) => !last.some((other) => other.id === one.id)), ...last];
  const shown = found.find((one) => one.id === chosen) || (await older(chosen));
  if (look < newest) return;
  newest = look;
  $("empty").hidden = found.length > 0;
  const items = found.map(row);
  for (const id of [...rows.keys()].filter((id) => !found.some((one) => one.id === id))) rows.delete(id);
  const there = [...$("queue").children];
  if (there.length !== items.length || items.some((item, i) => item !== there[i])) $("queue").replaceChildren(...items);
  if (shown && shown.id === chosen) draw(shown);
}

async function older(id) {
  try {
    return id && (await call("GET", `/api/v1/renders/${id}`));
  } catch (error) {
    if (error.status !== 404) throw error; // somebody has removed it
  }
}

function row(render) {
  if (!rows.has(render.id)) rows.set(render.id, { item: newRow(render) });
  const kept = rows.get(render.id);
  kept.render = render; // as it is now, for whoever clicks
  const item = kept.item;
  const [button, state, bar] = ["button", ".state", "progress"].map((what) => item.querySelector(what));
  button.setAttribute("aria-current", String(render.id === chosen));
  state.className = `state ${render.status}`;
  state.textContent = render.place === null ? render.status : `${render.status} (${render.place} before it)`;
  bar.value = render.progress.fraction;
  return item;
}

function newRow(render) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.render = render.id;
  const words = document.createElement("span");
  words.className = "words";
  words.textContent = render.prompt;
  const state = document.createElement("span");
  state.className = "state";
  const bar = document.createElement("progress");
  bar.max = 1;
  button.append(words, state, bar);
  button.addEventListener("click", () => choose(rows.get(render.id).render));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function choose(render) {
  if (chosen === render.id) return;
  chosen = render.id;
  playing = null;
  end = null;
  redone = false;
  $("video").removeAttribute("src");
  $("video").load();
  $("right").hidden = false;
  follow(render);
  draw(render);
}

function follow(render) {
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
  const ended = OVER.includes(render.status);
  if (end !== null && (!ended || render.ended_at !== end)) {
    playing = null; // it has gone on: what is loaded has an end
    follow(render);
  }
  if (redone && ended) playing = null;
  redone = !ended && (redone || (progress.frames === progress.of && progress.fraction < 0.99));
  end = ended ? render.ended_at : null;
  $("cancel").disabled = ended;
  $("pause").disabled = ended || render.status === "paused";
  $("resume").disabled = !["paused", "failed", "cancelled"].includes(render.status);
  $("change").querySelector("button").disabled = render.status !== "running";
  $("download").href = render.links.video;
  $("download").download = `${render.id}.mp4`;
  $("download").hidden = !(ended && progress.frames > 0);
  if (progress.frames > 0 && playing !== render.id) play(render);
}

function play(render) {
  playing = render.id;
  // grows until the render is over; numbered, as a browser keeps what it had under the same name
  $("video").src = `${render.links.video}?load=${++loads}`;
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
    const asked = { prompt: $("prompt").value, seed: Number($("seed").value) };
    if ($("preset").value) asked.preset = $("preset").value;
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

$("video").addEventListener("error", () => {
  const broken = $("video").error && $("video").error.code === MediaError.MEDIA_ERR_NETWORK;
  if (broken) playing = null; // once more at the next look
});

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
