// DOM building without markup: text is only ever set as text.

/**
 * An element with properties (attributes by name, `on*` as listeners; null and false are left out) and children, which
 * may come in lists.
 */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const child of children.flat()) if (child != null && child !== false) node.append(child);
  // After the children: dir="auto" would look at all of them again for each.
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  return node;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** A button that shows only an icon; `label` says what it does. */
export const action = (name, label, onclick, extra = '') =>
  el('button', { type: 'button', class: `quiet ${extra}`, 'aria-label': label, title: label, onclick }, icon(name));

/** A button that puts `text()` on the clipboard and says so. */
export function copyButton(label, text) {
  const button = el('button', { type: 'button', class: 'quiet copy', 'aria-label': label, title: label }, icon('copy'));
  button.addEventListener('click', async () => {
    const done = await toClipboard(text());
    button.replaceChildren(icon(done ? 'check' : 'copy'));
    announce(done ? 'Copied' : 'Copying failed');
    setTimeout(() => button.replaceChildren(icon('copy')), 1500);
  });
  return button;
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // no permission, or plain http from another machine
    const area = el('textarea', { class: 'sr-only', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** Says `text` to screen readers. */
export function announce(text) {
  byId('announcer').textContent = text;
}
