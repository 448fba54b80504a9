// Where the page is served: every address and every name kept in the browser is relative to it. A proxy may put the
// server at https://host/llm/, beside other servers of the same origin, which share this browser's storage.

/** The address of the server, with a slash at its end. */
export const BASE = new URL('.', import.meta.url).href;

/** What a name kept in the browser ends with: nothing at the root of the origin, the folder of the page elsewhere. */
export const FOLDER = new URL(BASE).pathname.replace(/^\/$/, '');
