// Puts what the daemon sends into the page: as text, never as markup, and only what has changed.
"use strict";

const byId = (id) => document.getElementById(id);

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const took = (ms) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);
const words = (state) => String(state ?? "–").replaceAll("_", " ");
const reason = (row) => [row.status ?? row.reason ?? "–", row.status ? words(row.reason ?? "") : ""].join(" ").trim();
const outcome = { acknowledge: ["delivered", "good"], release: ["tried again", "slow"], dead_letter: ["given up", "bad"] };
const circuits = { open: "good", closed: "bad", probing: "slow", recovering: "slow", failing: "slow" };

// A cell: its text, a small second line, its class, the colour of its badge.
const cell = (text, more = {}) => ({ text: String(text ?? "–"), small: "", kind: "", badge: null, ...more });

const lists = {
  tasks: {
    rows: "tasks",
    key: (t) => `${t.task_id} ${t.task_type}`,
    heads: ["Waits", "Task", "Type", "State", "Account", "Rings"],
    cells: (t) => [
      cell(span(t.age), { kind: "span" }), cell(t.task_id, { kind: "id" }), cell(t.task_type, { kind: "name" }),
      cell(words(t.state), { badge: "calm" }), cell(t.account_id, { kind: "name quiet" }),
      cell(t.url ?? "nobody", { kind: "quiet" }),
    ],
  },
  letters: {
    rows: "letters",
    key: (d) => d.source + d.id,
    heads: ["Since", "Task", "Why", "Attempts", "To", "Id"],
    cells: (d) => [
      cell(span(d.age), { kind: "span" }), cell(d.task_id, { kind: "id", small: `${d.task_type}, ${d.task_state}` }),
      cell(words(d.reason), { badge: "bad", small: d.because ?? "" }), cell(d.attempts), cell(d.url, { kind: "quiet" }),
      cell(d.source === "sealed" ? `SDK ${d.id}` : d.id, { kind: "span" }),
    ],
  },
  lanes: {
    rows: "lanes",
    key: (l) => `${l.lane} ${l.account_id}`,
    heads: ["Destination", "Circuit", "Owed", "Oldest", "Account"],
    cells: (l) => [
      cell(l.lane),
      cell(l.circuit, { badge: circuits[l.circuit], small: l.reason
        ? `${words(l.reason)}${l.opens_in > 0 ? `, probed in ${span(l.opens_in)}` : ""}` : "" }),
      cell(l.owed, { small: l.due ? `${l.due} due` : "" }), cell(span(l.oldest), { kind: "span" }),
      cell(l.account_id, { kind: "name quiet" }),
    ],
  },
  attempts: {
    rows: "attempts",
    key: (a) => a.id,
    heads: ["When", "Task", "Outcome", "Answer", "Took", "Attempt", "To"],
    cells: (a) => [
      cell(`${span(a.ago)} ago`, { kind: "span" }), cell(a.task_id, { kind: "id" }),
      cell(outcome[a.verdict]?.[0] ?? a.verdict, { badge: outcome[a.verdict]?.[1] ?? "calm" }),
      cell(reason(a)), cell(took(a.duration_ms), { kind: "span" }), cell(a.attempt),
      cell(a.url ?? (a.source === "sealed" ? "the SDK's outbox" : "–"), { kind: "quiet" }),
    ],
  },
};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Roles are spelled out because narrow screens show the rows as blocks.
function tableOf(id) {
  const section = byId(id);
  const found = section.querySelector("table");
  if (found) return found;
  const heads = lists[id].heads.map((head) => {
    const th = element("th", { textContent: head, scope: "col" });
    th.setAttribute("role", "columnheader");
    return th;
  });
  const row = element("tr", {}, ...heads);
  row.setAttribute("role", "row");
  const table = element("table", {}, element("thead", {}, row), element("tbody"));
  table.setAttribute("role", "table");
  table.setAttribute("aria-labelledby", `h-${id}`);
  section.append(table);
  return table;
}

function fill(td, wanted) {
  const look = JSON.stringify(wanted);
  if (td.look === look) return;
  td.look = look;
  td.className = wanted.kind;
  const text = wanted.badge
    ? element("span", { className: `badge ${wanted.badge}`, textContent: wanted.text })
    : document.createTextNode(wanted.text);
  const inside = element("div", {}, text);
  if (wanted.small) inside.append(element("small", { textContent: wanted.small }));
  td.replaceChildren(inside);
}

function show(id, rows) {
  const list = lists[id];
  byId(id).querySelector(".empty").hidden = rows.length > 0;
  const table = tableOf(id);
  table.hidden = rows.length === 0;
  const body = table.tBodies[0];
  const first = body.dataset.shown === undefined;
  body.dataset.shown = "yes";
  const old = new Map([...body.rows].map((tr) => [tr.key, tr]));
  rows.forEach((row, at) => {
    const key = list.key(row);
    let tr = old.get(key);
    old.delete(key);
    if (!tr) {
      tr = element("tr", { key, className: first ? "" : "new" });
      tr.setAttribute("role", "row");
      for (const head of list.heads) {
        const td = element("td");
        td.dataset.label = head;
        td.setAttribute("role", "cell");
        tr.append(td);
      }
    }
    list.cells(row).forEach((wanted, n) => fill(tr.cells[n], wanted));
    if (body.rows[at] !== tr) body.insertBefore(tr, body.rows[at] ?? null);
  });
  for (const tr of old.values()) tr.remove();
}

function figure(id, text, bad) {
  byId(id).textContent = text;
  byId(id).className = bad ? "bad" : "";
}

// Said only when it changes: a screen reader reads it aloud.
function say(state, text) {
  const place = byId("state");
  if (place.textContent === text) return;
  place.dataset.state = state;
  place.textContent = text;
}

function trouble(text) {
  const place = byId("trouble");
  document.body.classList.toggle("stale", text !== "");
  if (place.textContent === text) return;
  place.hidden = text === "";
  place.textContent = text;
}

let seen = null;
const since = () => (seen ? ` What you see is from ${seen.toLocaleTimeString()}.` : "");

function render(view) {
  if (view.database) {
    say("down", "Database down");
    trouble(`The database cannot be read: ${view.database}.${since()} It is tried again by itself.`);
    return;
  }
  seen = new Date();
  trouble("");
  if (view.listener && view.outbox) say("live", "Live");
  else say("wait", view.outbox ? "Live, but the listener reconnects" : "Live, but the outbox takes no writes");
  figure("n-open", view.open, false);
  figure("n-oldest", view.tasks.length ? span(view.tasks[0].age) : "–", false);
  figure("n-closed", view.closed, view.closed > 0);
  figure("n-dead", view.dead, view.dead > 0);
  for (const [id, list] of Object.entries(lists)) show(id, view[list.rows]);
}

function connect() {
  const events = new EventSource("/events");
  events.onmessage = (message) => render(JSON.parse(message.data));
  events.onerror = () => {
    say("down", "Daemon out of reach");
    trouble(`The daemon does not answer, or has no place for one more viewer.${since()} It is tried again by itself.`);
    // A refusal ends the stream for good; a broken connection is taken up again by the browser.
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
}

connect();
