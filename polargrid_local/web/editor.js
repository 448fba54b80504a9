// A form for one text of several lines: Enter sends it, Escape leaves it.

import { el } from './dom.js';

/** `onCancel` may be missing: then there is nothing to go back to. `note` says what sending does, `send` the button. */
export function editor({ label, text = '', note, send, onSend, onCancel, ...more }) {
  const area = el('textarea', {
    'aria-label': label,
    'dir': 'auto',
    'rows': Math.min(12, text.split('\n').length + 1),
    ...more,
  });
  area.value = text;
  const form = el(
    'form',
    {
      class: 'editor',
      onsubmit: (event) => {
        event.preventDefault();
        onSend(area.value);
      },
      onkeydown: (event) => {
        if (event.key === 'Escape' && onCancel) {
          event.preventDefault();
          event.stopPropagation();
          onCancel();
        }
        if (event.key === 'Enter' && event.target === area && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          form.requestSubmit();
        }
      },
    },
    area,
    el(
      'div',
      { class: 'actions' },
      note && el('small', {}, note),
      el('span', { class: 'spacer' }),
      onCancel && el('button', { type: 'button', onclick: onCancel }, 'Cancel'),
      el('button', { type: 'submit', class: 'primary' }, send),
    ),
  );
  return form;
}
