// The talk on the screen: messages and their actions, the growing answer, scrolling that follows while the reader does.

import { Calls } from './calls.js';
import { isWhole, lastOf, resultsOf } from './chats.js';
import { action, byId, copyButton, el } from './dom.js';
import { editor } from './editor.js';
import { showMarkdown } from './markdown.js';
import { parted, Reasoning } from './reasoning.js';

const NEAR_BOTTOM_PX = 80;
const LONG_CHARS = 1000;
const IDEAS = [
  'Explain how a prefix cache saves work, in simple words',
  'Write a Python function that merges two sorted lists',
  'Draft a short, friendly note to move a meeting to Friday',
];

export class Transcript {
  #root = byId('transcript');
  #scroller = byId('scroller');
  #latest = byId('latest');
  #chat; // the one that is shown
  #shown = new Map(); // message id -> its parts; the results of calls are parts of the answer that called
  #following = true;
  #late = new Set(); // messages that changed since the last frame
  #actions;

  /**
   * `actions`: {regenerate(message), edit(message, text), giveResult(message, index, text), goOn(), useIdea(text),
   * askKey()}
   */
  constructor(actions) {
    this.#actions = actions;
    this.#scroller.addEventListener(
      'scroll',
      () => {
        const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
        this.#following = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
        this.#latest.hidden = this.#following;
      },
      { passive: true },
    );
    this.#latest.addEventListener('click', () => this.follow());
    new ResizeObserver(() => this.#keepUp()).observe(this.#root);
  }

  /** Shows a whole chat. */
  show(chat) {
    this.#chat = chat;
    this.#shown.clear();
    const messages = this.#messages();
    this.#root.replaceChildren(
      ...(messages.length ? messages.map((message) => this.#add(message)) : [this.#welcome()]),
    );
    this.follow();
  }

  /** Brings the screen up to date with a chat that changed elsewhere; what did not change keeps its elements. */
  sync(chat) {
    this.#chat = chat;
    const kept = new Set(this.#messages().map(({ id }) => id));
    if (!kept.size || !this.#shown.size) {
      if (kept.size || this.#shown.size) this.show(chat);
      return;
    }
    for (const [id, parts] of this.#shown) {
      parts.gone = !kept.has(id);
      if (parts.gone && !parts.article.classList.contains('editing')) this.#drop(id); // an open editor stays
    }
    const goneOnes = new Set([...this.#shown.values()].filter(({ gone }) => gone).map(({ article }) => article));
    let there = this.#root.firstElementChild;
    for (const message of this.#messages()) {
      const parts = this.#shown.get(message.id);
      const article = parts?.article ?? this.#add(message);
      while (goneOnes.has(there)) there = there.nextElementSibling;
      if (there === article) there = there.nextElementSibling;
      else this.#root.insertBefore(article, there);
      if (parts && message.role === 'assistant' && parts.seen !== this.#factsOf(message).seen)
        this.#fill(message, parts);
    }
    this.#keepUp();
  }

  #messages() {
    return this.#chat.messages.filter(({ role }) => role !== 'tool');
  }

  #drop(id) {
    this.#shown.get(id).article.remove();
    this.#shown.delete(id);
  }

  /** Shows what changed in one message, at most once per frame. */
  update(message) {
    if (!this.#shown.has(message.id)) return;
    if (!this.#late.size) {
      // A hidden page draws no frames, but its answers go on.
      if (document.hidden) setTimeout(() => this.#flush(), 250);
      else requestAnimationFrame(() => this.#flush());
    }
    this.#late.add(message);
  }

  follow() {
    this.#following = true;
    this.#keepUp();
  }

  /** Opens the editor of a message of the user. */
  edit(message) {
    const parts = this.#shown.get(message.id) ?? {};
    const { article, body } = parts;
    if (!article || article.querySelector('form')) return;
    const close = () => {
      if (parts.gone) return this.#drop(message.id);
      form.replaceWith(body);
      article.classList.remove('editing');
      article.querySelector('.edit')?.focus();
    };
    const form = editor({
      label: 'Edit the message',
      text: message.content,
      note: 'What follows this message is replaced.',
      send: 'Send',
      onSend: (text) => text.trim() && this.#actions.edit(message, text),
      onCancel: close,
    });
    body.replaceWith(form);
    article.classList.add('editing');
    const area = form.querySelector('textarea');
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #flush() {
    const messages = [...this.#late];
    this.#late.clear();
    for (const message of messages) {
      const parts = this.#shown.get(message.id);
      if (parts) this.#fill(message, parts);
    }
  }

  #keepUp() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #welcome() {
    return el(
      'section',
      { class: 'welcome' },
      el('h2', {}, 'What is on your mind?'),
      el('p', {}, 'The model runs on this machine. What you write stays here.'),
      el(
        'ul',
        {},
        ...IDEAS.map((text) =>
          el('li', {}, el('button', { type: 'button', onclick: () => this.#actions.useIdea(text) }, text)),
        ),
      ),
    );
  }

  #add(message) {
    const mine = message.role === 'user';
    const body = el('div', { class: mine ? 'bubble' : 'body', dir: mine ? 'auto' : null });
    const status = el('div', { class: 'status' });
    const reasoning = !mine && new Reasoning();
    const calls = !mine && new Calls((index, text) => this.#actions.giveResult(message, index, text));
    const article = el(
      'article',
      { 'class': 'message', 'data-role': message.role, 'aria-label': mine ? 'You' : 'Answer' },
      el('h2', { class: 'sr-only' }, mine ? 'You' : 'Answer'),
      !mine && reasoning.node,
      body,
      !mine && calls.node,
      !mine && status,
      el('footer', {}),
    );
    const parts = { article, reasoning, body, calls, status, footer: article.lastElementChild };
    this.#shown.set(message.id, parts);
    if (mine) {
      body.textContent = message.content;
      if (message.content.length > LONG_CHARS) body.tabIndex = 0; // it scrolls within itself
      parts.footer.append(
        action('edit', 'Edit', () => this.edit(message), 'edit'),
        copyButton('Copy the message', () => message.content),
      );
    } else {
      this.#fill(message, parts);
    }
    return article;
  }

  // What is true of an answer: its parts, the results of its calls, and whether the talk went on after it.
  #factsOf(message) {
    const calls = message.toolCalls ?? [];
    const results = resultsOf(this.#chat, message).map((result) => result?.content);
    const isLast = lastOf(this.#chat) === message;
    const facts = { ...parted(message), calls, results, isLast };
    return { ...facts, seen: JSON.stringify([message, results, isLast]) };
  }

  #fill(message, parts) {
    const { article, body, status, footer } = parts;
    const { seen, reasoning, text, calls, results, isLast } = this.#factsOf(message);
    const isBusy = Boolean(message.state);
    parts.seen = seen;
    article.setAttribute('aria-busy', String(isBusy));
    parts.reasoning.show(reasoning, isBusy && !text.trim() && !calls.length);
    showMarkdown(body, text, message.isJson);
    parts.calls.show(calls, results, isBusy ? 'coming' : !isWhole(message) ? 'cut' : isLast ? 'wanted' : 'passed');
    const canGoOn = isLast && calls.length > 0 && !results.includes(undefined);
    status.replaceChildren(...this.#statusOf(message, canGoOn));
    const state = message.state ? 'busy' : 'done';
    if (footer.dataset.state !== state || state === 'done') {
      footer.replaceChildren(
        ...(message.state
          ? []
          : [
              (text || calls.length > 0) && copyButton('Copy the answer', () => this.#copied(message)),
              action('again', 'Answer again', () => this.#actions.regenerate(message)),
              figures(message),
            ].filter(Boolean)),
      );
    }
    footer.dataset.state = state;
  }

  // An answer as text: what was said, then each call with its result, where it has one.
  #copied(message) {
    const { text, calls, results } = this.#factsOf(message);
    const called = calls.map(({ function: { name, arguments: given } }, at) =>
      [`${name}(${given})`, results[at]].filter((part) => part !== undefined).join('\n'),
    );
    return [text, ...called].filter(Boolean).join('\n\n');
  }

  #statusOf(message, canGoOn) {
    const { state, progress, live, error, finish } = message;
    if (error) {
      const [label, onclick] = error.key
        ? ['Enter the key', () => this.#actions.askKey()]
        : ['Try again', () => this.#actions.regenerate(message)];
      return [
        el(
          'div',
          { class: 'error', role: 'alert' },
          el('b', {}, error.title),
          el('span', {}, error.text),
          el('button', { type: 'button', class: 'link', onclick }, label),
        ),
      ];
    }
    if (state === 'loading') return [waiting('Loading the model', progress)];
    if (state === 'reading')
      return [
        waiting(
          live?.total
            ? `Reading the prompt, ${live.done.toLocaleString()} of ${live.total.toLocaleString()} tokens`
            : 'Thinking',
          progress,
        ),
      ];
    if (state === 'elsewhere') return [waiting('Another tab is writing this answer')];
    if (state === 'writing') return [el('small', { class: 'figures' }, `${tokens(live)}${speed(live)}`)];
    if (canGoOn && isWhole(message))
      return [el('button', { type: 'button', onclick: () => this.#actions.goOn() }, 'Go on with these results')];
    const why = {
      stopped: 'You stopped this answer.',
      interrupted: 'This answer was interrupted.', // stored without an end, and no tab is writing it
      content_filter: 'The content filter ended this answer.',
      length: 'The answer was cut: it reached the longest length set, or the end of what the model can hold.',
    }[finish ?? 'interrupted'];
    return why ? [el('small', { class: 'why' }, why)] : [];
  }
}

const waiting = (text, progress) =>
  el(
    'div',
    { class: 'waiting' },
    el('span', {}, text),
    progress === undefined
      ? el('i', { 'aria-hidden': 'true' })
      : el('progress', { max: '1', value: String(progress), 'aria-label': text }),
  );

const tokens = ({ tokens: n }) => `${n.toLocaleString()} ${n === 1 ? 'token' : 'tokens'}`;
const speed = ({ perSecond }) => (perSecond ? ` · ${perSecond.toFixed(perSecond < 10 ? 1 : 0)} per second` : '');

function figures({ model, stats }) {
  if (!stats?.tokens) return null;
  const facts = [
    `${tokens(stats)}${speed(stats)}`,
    stats.firstMs !== null && `first after ${(stats.firstMs / 1000).toFixed(2)} s`,
    stats.promptTokens && `prompt ${stats.promptTokens.toLocaleString()}`,
    model,
  ];
  return el('small', { class: 'figures' }, facts.filter(Boolean).join(' · '));
}
