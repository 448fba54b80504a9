// What one tab changed in a chat, and that change applied to what another tab has stored in the meantime. Pure.
//
// What either tab adds stays and what either removes is gone. Only the tab that streams an answer changes its message.

const FIELDS = ['title', 'system'];

/** What leads from the chat `before` (null: there was none) to `after`, as plain data. */
export function changes(before, after) {
  const old = new Map(before?.messages.map((message) => [message.id, JSON.stringify(message)]));
  const kept = new Set(after.messages.map(({ id }) => id));
  return {
    id: after.id,
    isNew: !before,
    updated: after.updated,
    fields: Object.fromEntries(
      FIELDS.filter((name) => before?.[name] !== after[name]).map((name) => [name, after[name]]),
    ),
    removed: [...old.keys()].filter((id) => !kept.has(id)),
    added: after.messages.filter(({ id }) => !old.has(id)),
    changed: after.messages.filter((message) => old.has(message.id) && old.get(message.id) !== JSON.stringify(message)),
  };
}

/** True when there is nothing to store. */
export const isNothing = ({ isNew, fields, removed, added, changed }) =>
  !isNew && !Object.keys(fields).length && !removed.length && !added.length && !changed.length;

/** The stored chat with the change in it; null when another tab removed the chat. Applying it twice is harmless. */
export function applied(stored, { id, isNew, updated, fields, removed, added, changed }) {
  if (!stored && !isNew) return null;
  const gone = new Set(removed);
  const newer = new Map([...added, ...changed].map((message) => [message.id, message]));
  const messages = (stored?.messages ?? [])
    .filter((message) => !gone.has(message.id))
    .map((message) => newer.get(message.id) ?? message);
  const present = new Set(messages.map((message) => message.id));
  return {
    ...(stored ?? { id, title: '', system: '' }),
    ...fields,
    updated: Math.max(updated, stored?.updated ?? 0),
    messages: [...messages, ...added.filter((message) => !present.has(message.id))],
  };
}
