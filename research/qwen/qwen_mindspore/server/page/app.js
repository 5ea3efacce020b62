// The page: its parts, and what goes between them.
/* global theme */
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { announce, notify } from "./dialogs.js";
import { say } from "./dom.js";
import { getLanguage, setLanguage, t, translate } from "./i18n.js";
import { Log } from "./log.js";
import { Panel } from "./panel.js";
import { Service } from "./service.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { fileName, fromFile, toFile } from "./transfer.js";

const LARGEST_FILE = 20e6;  // bytes
const LONGEST_SAID = 600;  // characters of an answer that are read out when it is done

const byId = id => document.getElementById(id);
translate();
const store = new Store();
const service = new Service();
const chat = new Chat(store, service);
const composer = new Composer(chat, service);
const panel = new Panel(chat, service);
const log = new Log(chat, service, { suggest: text => composer.fill(text), openKey: () => panel.open("api-key") });
new Sidebar(chat, store);

function showState() {
  const { state, models, model } = service;
  byId("state").dataset.state = state;
  say(byId("state-text"), `state_${state}`);
  const isMany = models.length > 1;
  byId("model-name").textContent = model ?? "";
  byId("model-name").hidden = isMany;
  byId("model").hidden = !isMany;
  byId("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === model)));
  const isLocked = state === "locked";
  byId("banner").hidden = state === "ready";
  say(byId("banner-text"), `banner_${state}`);
  byId("banner-key").hidden = !isLocked;
}

function showTitle() {
  const { title } = chat.conversation;
  if (title) {
    delete byId("title").dataset.t;
    byId("title").textContent = title;
  } else {
    say(byId("title"), "newChat");
  }
  document.title = title ? `${title} · Qwen` : "Qwen";
}

function hearEnd({ conversation, answer, hasBegun, error, isStopped }) {
  if (error || hasBegun) service.note(error);
  if (conversation !== chat.conversation) return;
  if (isStopped) announce("saidStopped");
  else if (error) announce("saidError");
  else if (answer.calls.length) announce("saidCall", { name: answer.calls.map(({ name }) => name).join(", ") });
  else announce("saidDone", { tokens: answer.stats?.tokens ?? 0 }, answer.content.slice(0, LONGEST_SAID));
  // The next thing to do is to answer the call, unless the user has gone elsewhere meanwhile.
  const isFree = [document.body, byId("question")].includes(document.activeElement) && !byId("question").value;
  if (answer.calls.length && isFree) document.querySelector(".card-answer textarea")?.focus();
}

let heardPhase = null;
function hearPhase({ phase, seconds, status }) {
  if (phase !== heardPhase) {
    if (phase === "sending" && heardPhase !== "retrying") announce("saidAsked");
    if (phase === "retrying") announce(status === 429 ? "retryFull" : "retryLoading", { seconds });
  }
  heardPhase = phase;
}

function exportFile() {
  const { text, isWhole } = toFile(chat.conversation);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: fileName(chat.conversation) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  if (!isWhole) notify(t("exportPart"));
}

async function importFile(file) {
  try {
    if (file.size > LARGEST_FILE) throw new Error(t("importLarge"));
    const conversation = fromFile(await file.text());
    chat.show(conversation);
    chat.save();
    notify(t("imported", { count: conversation.messages.length }));
  } catch (error) {
    notify(`${file.name}: ${error.message}`, { isError: true });
  }
}

service.addEventListener("change", showState);
service.addEventListener("model", showState);
let wasChat = true;
service.addEventListener("model", () => {  // how a conversation looks depends on what the model is
  if (service.isChat !== wasChat) log.show();
  wasChat = service.isChat;
});
chat.addEventListener("conversation", showTitle);
chat.addEventListener("list", showTitle);
chat.addEventListener("end", event => hearEnd(event.detail));
chat.addEventListener("phase", event => hearPhase(event.detail.phase));
store.addEventListener("forked", () => notify(t("forked")));
store.addEventListener("full", () => notify(t("storageFull"), { isError: true }));
byId("model").addEventListener("change", event => service.choose(event.target.value));
byId("open-panel").addEventListener("click", () => panel.open());
byId("banner-key").addEventListener("click", () => panel.open("api-key"));
byId("export").addEventListener("click", exportFile);
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", event => {
  const [file] = event.target.files;
  event.target.value = "";  // so that the same file can be chosen again
  if (file) importFile(file);
});
byId("switch-language").addEventListener("click", () => {
  setLanguage(getLanguage() === "zh" ? "en" : "zh");
  byId("language").value = getLanguage();
});
byId("switch-theme").addEventListener("click", () => {
  theme.choice = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  byId("theme").value = theme.choice;
});

chat.reopen();
showTitle();
showState();
service.connect();
if (matchMedia("(min-width: 801px)").matches) composer.focus();  // on a phone that would open the keyboard
