// The chat page: ties the parts together. The parts do not know each other.

import { Answer, explained } from './answer.js';
import { Chats, lastOf, newChat, newMessage, newResult, resultsOf, titleOf } from './chats.js';
import { announce, byId } from './dom.js';
import { Health } from './health.js';
import { Models } from './models.js';
import { BASE, FOLDER } from './place.js';
import { PolarGrid } from './polargrid.js';
import { parted } from './reasoning.js';
import { Settings } from './settings.js';
import { Sidebar } from './sidebar.js';
import { Transcript } from './transcript.js';

const SAVE_EVERY_MS = 1000;

const settings = new Settings();
let client = makeClient();
const models = new Models(() => client, settings, showError);
const health = new Health(() => client, showHealth);
const store = new Chats(changedElsewhere);
const answers = new Map(); // chat id -> the answer being generated
let chat = newChat(settings.system);
let listIsLate = false; // the list of chats changed and is not drawn again yet
let connected = false; // the models shown are those that the server told of

const transcript = new Transcript({
  regenerate,
  edit,
  giveResult,
  goOn: () => answer(chat),
  useIdea: (text) => submit(text),
  askKey: () => openSettings('apiKey'),
});
const sidebar = new Sidebar({ choose, rename, remove, restore, create });

function makeClient() {
  return new PolarGrid({ baseUrl: BASE, apiKey: settings.apiKey, maxRetries: 0 });
}

// ---- the server

async function connect() {
  connected = true;
  try {
    await models.refresh();
    showError(null);
  } catch (error) {
    connected = Boolean(showError(error).key); // a wrong key: trying again would change nothing
  }
  showComposer();
}

function showHealth(state) {
  models.showServer(state);
  if (state === 'gone') connected = false;
  else if (!connected) connect();
}

/** Says above the talk what went wrong with the models; null: nothing any more. */
function showError(error) {
  byId('banner').hidden = !error;
  if (!error) return null;
  health.check();
  const problem = explained(error);
  const words = `${problem.title}. ${problem.text}`;
  const [text, button] = byId('banner').children;
  if (text.textContent !== words) text.textContent = words; // the same text set again would be read aloud again
  button.textContent = problem.key ? 'Enter the key' : 'Try again';
  button.onclick = problem.key ? () => openSettings('apiKey') : connect;
  return problem;
}

// ---- one question, one answer

function submit(text) {
  if (!text.trim() || answers.has(chat.id)) return;
  chat.messages.push(newMessage('user', text.trim()));
  answer(chat);
}

/** Takes the messages from `at` on out of the chat, and returns the first answer among them. */
function cut(at) {
  return chat.messages.splice(at).find(({ role }) => role === 'assistant');
}

function edit(message, text) {
  answers.get(chat.id)?.stop();
  // The edited text is a new message: another tab may be editing the old one, or have replaced it.
  const replaced = chat.messages.includes(message) ? cut(chat.messages.indexOf(message)) : undefined;
  chat.messages.push(newMessage('user', text.trim()));
  answer(chat, replaced);
}

function regenerate(message = lastOf(chat)) {
  if (message?.role !== 'assistant' || !chat.messages.includes(message)) return;
  answers.get(chat.id)?.stop();
  answer(chat, cut(chat.messages.indexOf(message)));
}

/** The result of one call of an answer. When all have theirs, the model goes on. */
function giveResult(message, index, text) {
  if (!chat.messages.includes(message)) return;
  answers.get(chat.id)?.stop();
  const results = resultsOf(chat, message);
  results[index] = newResult(message, index, text);
  const replaced = cut(chat.messages.indexOf(message) + 1);
  chat.messages.push(...results.filter(Boolean));
  if (results.every(Boolean)) {
    answer(chat, replaced);
    focusPrompt();
    return;
  }
  chat.updated = Date.now();
  store.restore(chat);
  save(chat);
  transcript.sync(chat);
  showChats();
}

/** `replaced`: the answer that stood in this place, if one did. */
async function answer(asked, replaced) {
  const message = newMessage('assistant', '', { model: models.current, state: 'loading' });
  asked.messages.push(message);
  asked.updated = Date.now();
  store.restore(asked);
  showError(null);
  const running = new Answer(asked, message, replaced);
  answers.set(asked.id, running);
  if (asked === chat) transcript.show(asked);
  showChats();
  announce('The answer has begun');
  let later = 0;
  await store.hold(message, async () => {
    save(asked);
    await running.run(client, models, settings.request, () => {
      transcript.update(message);
      later ||= setTimeout(() => {
        later = 0;
        save(asked);
      }, SAVE_EVERY_MS);
    });
    clearTimeout(later);
    if (answers.get(asked.id) === running) answers.delete(asked.id);
    // An error is read aloud by the alert that shows it.
    if (asked === chat) announce(message.error ? '' : spoken(message));
    await save(asked);
  });
  if (message.error) health.check();
  showChats();
}

function spoken(message) {
  const { text } = parted(message);
  const names = (message.toolCalls ?? []).map((call) => call.function.name);
  const called = names.length && `The model calls ${names.join(' and ')}.`;
  return [text && `Answer: ${text}`, called].filter(Boolean).join(' ');
}

// ---- the chats

async function save(asked) {
  const outcome = await store.save(asked);
  if (outcome === 'kept')
    byId('sidebar').querySelector('.note').textContent =
      'This browser keeps no chats: they end with the page. Nothing leaves this machine.';
  showUnsaved(outcome);
}

function showUnsaved(outcome) {
  const banner = byId('unsaved');
  if (outcome !== 'full' && outcome !== 'failed') {
    banner.hidden ||= !store.unsaved().length;
    return;
  }
  const [text, button] = banner.children;
  const why = outcome === 'full' ? 'The storage of this browser is full' : 'This browser could not store the chat';
  const words = `${why}: what is new is on the screen only. Copy what you need, or delete old chats to make room.`;
  if (text.textContent !== words) text.textContent = words; // the same text set again would be read aloud again
  button.onclick = saveAll;
  banner.hidden = false;
}

async function saveAll() {
  for (const unsaved of store.unsaved()) await save(unsaved);
  showUnsaved('saved');
}

/** Another tab has changed, added or removed this chat. */
function changedElsewhere(other) {
  const running = answers.get(other.id);
  if (running && (other.removed || !other.messages.includes(running.message))) running.stop();
  if (other.removed && (running || other === chat)) sidebar.offerBack(other, 'was deleted in another tab.');
  if (other === chat) showUnfinished();
  if (!listIsLate)
    queueMicrotask(() => {
      listIsLate = false;
      showChats();
    });
  listIsLate = true; // drawn once, however many chats changed
  if (other.removed) saveAll(); // the removed chat made room for what could not be stored
}

/** An answer without an end was interrupted, unless another tab is writing it. */
async function showUnfinished() {
  const shown = chat;
  for (const message of shown.messages) {
    if (message.role !== 'assistant' || answers.get(shown.id)?.message === message) continue;
    const open = !message.finish && !message.error;
    const elsewhere = open && (await store.isWrittenElsewhere(message, () => seeAgain(shown)));
    message.state = elsewhere ? 'elsewhere' : undefined;
  }
  if (shown === chat) transcript.sync(shown);
}

async function seeAgain(shown) {
  await store.refresh(shown.id);
  if (shown === chat) showUnfinished();
}

function showChats() {
  const kept = store.list.filter(({ removed }) => !removed).sort((a, b) => b.updated - a.updated);
  sidebar.show(kept, chat.id, answers);
  document.title = chat.messages.length ? `${titleOf(chat)} · PolarGrid Local` : 'PolarGrid Local';
  byId('title').textContent = titleOf(chat);
  showComposer();
}

function choose(id) {
  chat = store.find(id) ?? chat;
  transcript.show(chat);
  showUnfinished();
  showChats();
  focusPrompt();
}

function create() {
  chat = newChat(settings.system);
  transcript.show(chat);
  showChats();
  focusPrompt();
}

function rename(id, title) {
  const renamed = store.find(id);
  if (!renamed) return;
  renamed.title = title === titleOf({ ...renamed, title: '' }) ? '' : title;
  save(renamed);
  showChats();
}

async function remove(id) {
  answers.get(id)?.stop();
  const removing = store.remove(store.find(id));
  if (chat.id === id) create();
  else showChats();
  await removing;
  await saveAll(); // the removed chat made room for what could not be stored
}

async function restore(removed) {
  store.restore(removed);
  choose(removed.id);
  await save(removed);
}

// ---- the box at the bottom

const prompt = byId('prompt');
const focusPrompt = () => {
  if (matchMedia('(hover: hover)').matches) prompt.focus();
};

function showComposer() {
  const busy = answers.has(chat.id);
  const hadFocus = document.activeElement === byId(busy ? 'send' : 'stop');
  byId('send').hidden = busy;
  byId('stop').hidden = !busy;
  byId('send').disabled = !prompt.value.trim() || !models.current;
  if (hadFocus) (busy ? byId('stop') : prompt).focus();
}

function fitPrompt() {
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight}px`;
  showComposer();
}

byId('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  if (byId('send').disabled || answers.has(chat.id)) return;
  submit(prompt.value);
  prompt.value = '';
  fitPrompt();
});
byId('stop').addEventListener('click', () => answers.get(chat.id)?.stop());
prompt.addEventListener('input', fitPrompt);
prompt.addEventListener('keydown', (event) => {
  if (event.isComposing) return;
  if (event.key === 'Enter' && !event.shiftKey) {
    event.preventDefault();
    byId('composer').requestSubmit();
  } else if (event.key === 'ArrowUp' && !prompt.value) {
    const last = chat.messages.findLast(({ role }) => role === 'user');
    if (last) {
      event.preventDefault();
      transcript.edit(last);
    }
  }
});

// ---- the rest of the page

function openSettings(focus) {
  settings.edit(
    chat.system,
    (system) => {
      chat.system = system;
      client = makeClient();
      if (store.find(chat.id)) save(chat);
      showForms();
      connect();
    },
    focus,
  );
}

/** Says beside the box what the answers are held to, and what the model may call: both are easily forgotten. */
function showForms() {
  const { responseFormat, tools = [] } = settings.request;
  const count = `${tools.length} ${tools.length === 1 ? 'tool' : 'tools'}`;
  const button = byId('open-forms');
  button.textContent = [responseFormat && 'JSON schema', tools.length && count].filter(Boolean).join(' and ');
  button.hidden = !button.textContent;
  button.onclick = () => openSettings(responseFormat ? 'schema' : 'tools');
}

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  announce(`${root.dataset.theme} theme`);
  try {
    localStorage.setItem(`polargrid.theme${FOLDER}`, root.dataset.theme);
  } catch {
    /* then it lasts as long as the page */
  }
}

const SHORTCUTS = {
  'shift+o': create,
  'shift+e': () => regenerate(),
  b: () => sidebar.toggle(),
  '/': () => byId('keys').showModal(),
};

document.addEventListener('keydown', (event) => {
  if (event.defaultPrevented || document.querySelector('dialog[open]')) return;
  if (event.key === 'Escape' && !document.querySelector(':popover-open')) answers.get(chat.id)?.stop();
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const run = SHORTCUTS[`${event.shiftKey ? 'shift+' : ''}${event.key.toLowerCase()}`];
  if (run) {
    event.preventDefault();
    run();
  }
});
if (/Mac|iP(hone|ad)/.test(navigator.platform)) {
  for (const key of document.querySelectorAll('#keys kbd'))
    key.textContent = { Ctrl: '⌘', Shift: '⇧' }[key.textContent] ?? key.textContent;
}
byId('open-settings').addEventListener('click', () => openSettings());
byId('toggle-theme').addEventListener('click', turnTheme);
byId('open-keys').addEventListener('click', () => byId('keys').showModal());
byId('keys-close').addEventListener('click', () => byId('keys').close());
addEventListener('pagehide', () => store.saveAtOnce());

transcript.show(chat);
showForms();
await store.refresh();
showChats();
saveAll(); // what an earlier page could not store
await connect();
health.check();
focusPrompt();
