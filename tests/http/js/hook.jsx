// A React hook over the client as apps write it: accumulated text, a busy flag cleared in `finally`, one shared client.
import { PolarGrid } from 'polargrid';
import { StrictMode, useCallback, useState } from 'react';
import { createRoot } from 'react-dom/client';

const parameters = new URLSearchParams(location.search);
const client = new PolarGrid({ baseUrl: parameters.get('server'), apiKey: 'pg_any' });

function useChat(model) {
  const [text, setText] = useState('');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);

  const ask = useCallback(
    async (content, maxTokens) => {
      setText('');
      setError(null);
      setBusy(true);
      try {
        for await (const chunk of client.chatCompletionStream({
          model,
          messages: [{ role: 'user', content }],
          maxTokens,
        })) {
          const piece = chunk.choices[0]?.delta?.content;
          if (piece) setText((before) => before + piece);
        }
      } catch (caught) {
        setError(caught);
      } finally {
        setBusy(false);
      }
    },
    [model],
  );

  return { ask, busy, error, text };
}

function Chat() {
  const { ask, busy, error, text } = useChat(parameters.get('model'));
  return (
    <>
      <button disabled={busy} onClick={() => ask('\ue001')}>
        Ask
      </button>
      <button onClick={() => ask('x', -2)}>Ask wrongly</button>
      <output data-busy={busy}>{text}</output>
      {error && <p role="alert">{error.name}</p>}
    </>
  );
}

createRoot(document.getElementById('root')).render(
  <StrictMode>
    <Chat />
  </StrictMode>,
);
