// The list of chats: choosing, renaming, deleting with a way back, and the drawer on narrow screens.

import { byId, el, icon } from './dom.js';
import { titleOf } from './chats.js';

const NARROW = matchMedia('(max-width: 760px)');
const UNDO_MS = 8000;

export class Sidebar {
  #actions;
  #toastTimer = 0;
  #shown = ''; // what the list shows, as text
  #renaming = false;

  /** `actions`: {choose(id), rename(id, title), remove(id), restore(chat), create()} */
  constructor(actions) {
    this.#actions = actions;
    byId('new-chat').addEventListener('click', () => {
      this.#closeDrawer();
      actions.create();
    });
    byId('toggle-sidebar').addEventListener('click', () => this.toggle());
    byId('scrim').addEventListener('click', () => this.toggle(false));
    byId('sidebar').addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && NARROW.matches) this.toggle(false);
    });
    NARROW.addEventListener('change', () => this.#apply(!NARROW.matches));
    this.#apply(!NARROW.matches);
  }

  toggle(open = byId('sidebar').inert) {
    this.#apply(open);
    if (NARROW.matches) (open ? byId('new-chat') : byId('toggle-sidebar')).focus();
  }

  /** Shows `chats`, marking the chosen one and those that are being answered. */
  show(chats, currentId, busy) {
    const list = byId('chat-list');
    const entry = (chat) => [chat.id, titleOf(chat), chat.id === currentId, busy.has(chat.id)];
    const shown = JSON.stringify(chats.map(entry));
    if (this.#renaming || shown === this.#shown) return; // a redraw would lose a title being typed, and the focus
    this.#shown = shown;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.chat : null;
    list.replaceChildren(...chats.map((chat) => this.#row(chat, chat.id === currentId, busy.has(chat.id))));
    if (focused) list.querySelector(`[data-chat="${focused}"]`)?.focus();
  }

  #row(chat, current, busy) {
    const title = titleOf(chat);
    const open = el(
      'button',
      {
        'type': 'button',
        'class': 'chat',
        'data-chat': chat.id,
        'aria-current': current ? 'page' : null,
        'title': title,
        'onclick': () => {
          this.#closeDrawer();
          this.#actions.choose(chat.id);
        },
      },
      el('span', { dir: 'auto' }, title),
      busy && el('i', { role: 'img', 'aria-label': 'being answered' }),
    );
    const row = el(
      'li',
      {},
      open,
      el(
        'button',
        {
          type: 'button',
          class: 'quiet',
          'aria-label': `Rename ${title}`,
          title: 'Rename',
          onclick: () => this.#rename(row, chat, title),
        },
        icon('edit'),
      ),
      el(
        'button',
        {
          type: 'button',
          class: 'quiet',
          'aria-label': `Delete ${title}`,
          title: 'Delete',
          onclick: () => this.#remove(chat),
        },
        icon('trash'),
      ),
    );
    return row;
  }

  #rename(row, chat, title) {
    const input = el('input', { 'aria-label': 'Title of the chat', 'maxlength': '120', 'dir': 'auto' });
    input.value = title;
    this.#renaming = true;
    const close = (keep) => {
      if (!this.#renaming) return;
      this.#renaming = false;
      this.#shown = '';
      this.#actions.rename(chat.id, keep ? input.value.trim() : chat.title);
    };
    input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.isComposing) close(true);
      if (event.key === 'Escape') {
        event.stopPropagation();
        close(false);
      }
    });
    input.addEventListener('blur', () => close(true));
    row.replaceChildren(input);
    input.select();
  }

  #remove(chat) {
    this.#actions.remove(chat.id);
    this.offerBack(chat, 'was deleted.');
  }

  /** Says that a chat is gone, and how; for some seconds it can be brought back. */
  offerBack(chat, how) {
    const toast = byId('toast');
    toast.firstElementChild.replaceChildren('“', el('bdi', {}, titleOf(chat)), `” ${how}`);
    toast.lastElementChild.onclick = () => {
      toast.hidden = true;
      this.#actions.restore(chat);
    };
    toast.hidden = false;
    clearTimeout(this.#toastTimer);
    this.#toastTimer = setTimeout(() => {
      toast.hidden = true;
    }, UNDO_MS);
  }

  #closeDrawer() {
    if (NARROW.matches) this.#apply(false);
  }

  #apply(open) {
    document.body.classList.toggle('with-sidebar', open);
    byId('sidebar').inert = !open;
    byId('main').inert = open && NARROW.matches;
    byId('toggle-sidebar').setAttribute('aria-expanded', String(open));
  }
}
