// The chat page: ties the parts together. The parts do not know each other.

import { Answer, explained } from './answer.js';
import { Chats, newChat, newMessage, titleOf } from './chats.js';
import { announce, byId } from './dom.js';
import { Models } from './models.js';
import { PolarGrid } from './polargrid.js';
import { Settings } from './settings.js';
import { Sidebar } from './sidebar.js';
import { Transcript } from './transcript.js';

const SAVE_EVERY_MS = 2000;
const RECONNECT_MS = 3000;

const settings = new Settings();
let client = makeClient();
const models = new Models(() => client, settings, showError);
const store = new Chats(() => refreshChats());
const answers = new Map(); // chat id -> the answer being generated
let chats = [];
let chat = newChat(settings.system);
let reconnect = 0;

const transcript = new Transcript({
  regenerate,
  edit,
  useIdea: (text) => submit(text),
  askKey: () => openSettings('apiKey'),
});
const sidebar = new Sidebar({ choose, rename, remove, restore, create });

function makeClient() {
  return new PolarGrid({ baseUrl: location.origin, apiKey: settings.apiKey, maxRetries: 0 });
}

// ---- the server

async function connect() {
  clearTimeout(reconnect);
  try {
    await models.refresh();
    byId('banner').hidden = true;
  } catch (error) {
    const { key } = showError(error);
    if (!key) reconnect = setTimeout(connect, RECONNECT_MS);
  }
  showComposer();
}

function showError(error) {
  const problem = explained(error);
  const words = `${problem.title}. ${problem.text}`;
  const [text, button] = byId('banner').children;
  if (text.textContent !== words) text.textContent = words; // said once, not at every attempt
  button.textContent = problem.key ? 'Enter the key' : 'Try again';
  button.onclick = problem.key ? () => openSettings('apiKey') : connect;
  byId('banner').hidden = false;
  return problem;
}

// ---- one question, one answer

function submit(text) {
  if (!text.trim() || answers.has(chat.id)) return;
  chat.messages.push(newMessage('user', text.trim()));
  answer(chat);
}

function edit(message, text) {
  answers.get(chat.id)?.stop();
  message.content = text.trim();
  chat.messages.length = chat.messages.indexOf(message) + 1;
  answer(chat);
}

function regenerate(message = chat.messages.at(-1)) {
  if (message?.role !== 'assistant') return;
  answers.get(chat.id)?.stop();
  chat.messages.length = chat.messages.indexOf(message);
  answer(chat);
}

async function answer(asked) {
  const message = newMessage('assistant', '', { model: models.current, state: 'loading' });
  asked.messages.push(message);
  asked.updated = Date.now();
  if (!chats.includes(asked)) chats.push(asked);
  const running = new Answer(asked, message);
  answers.set(asked.id, running);
  if (asked === chat) transcript.show(asked);
  showChats();
  announce('The answer has begun');
  let saved = 0;
  save(asked);
  await running.run(client, models, settings.sampling, () => {
    transcript.update(message);
    if (Date.now() - saved > SAVE_EVERY_MS) {
      saved = Date.now();
      save(asked);
    }
  });
  if (answers.get(asked.id) === running) answers.delete(asked.id);
  if (asked === chat) announce(message.error ? '' : `Answer: ${message.content}`); // errors are alerts of their own
  if (chats.includes(asked)) await save(asked);
  showChats();
}

// ---- the chats

async function save(asked) {
  if (!(await store.save(asked)))
    byId('sidebar').querySelector('.note').textContent =
      'This browser keeps no chats: they end with the page. Nothing leaves this machine.';
}

async function refreshChats() {
  const stored = await store.all();
  // What is being answered here is newer than what is stored.
  chats = stored.map(
    (other) => chats.find(({ id }) => id === other.id && (answers.has(id) || id === chat.id)) ?? other,
  );
  for (const other of chats) {
    const last = other.messages.at(-1);
    if (last?.role === 'assistant' && !answers.has(other.id) && !last.finish && !last.error)
      last.finish = 'interrupted';
  }
  showChats();
}

function showChats() {
  chats.sort((a, b) => b.updated - a.updated);
  sidebar.show(chats, chat.id, answers);
  document.title = chat.messages.length ? `${titleOf(chat)} · PolarGrid Local` : 'PolarGrid Local';
  byId('title').textContent = titleOf(chat);
  showComposer();
}

function choose(id) {
  chat = chats.find((other) => other.id === id) ?? chat;
  transcript.show(chat);
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
  const renamed = chats.find((other) => other.id === id);
  if (!renamed) return;
  renamed.title = title === titleOf({ ...renamed, title: '' }) ? '' : title;
  save(renamed);
  showChats();
}

async function remove(id) {
  answers.get(id)?.stop();
  chats = chats.filter((other) => other.id !== id); // first: the answer, as it ends, saves what is in the list
  await store.remove(id);
  if (chat.id === id) create();
  else showChats();
}

async function restore(removed) {
  chats.push(removed);
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
      if (chats.includes(chat)) save(chat);
      connect();
    },
    focus,
  );
}

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  announce(`${root.dataset.theme} theme`);
  try {
    localStorage.setItem('polargrid.theme', root.dataset.theme);
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
addEventListener('pagehide', () => {
  if (answers.size) store.saveAtOnce([...answers.values()].map((running) => running.chat));
});

transcript.show(chat);
await refreshChats();
await connect();
focusPrompt();
