import { useState } from "preact/hooks";
import { useWords } from "../language.ts";
import { hasKey, keepKey } from "../server.ts";

/** Asks for the server's key. */
export function KeyForm({ onKey }: { readonly onKey: () => void }) {
  const words = useWords();
  const [key, setKey] = useState("");
  return (
    <form
      class="card key"
      onSubmit={(event) => {
        event.preventDefault();
        keepKey(key.trim());
        onKey();
      }}
    >
      <h2>{words.keyTitle}</h2>
      <p>{words.keyText}</p>
      {hasKey() && (
        <p class="bad" role="alert">
          {words.keyWrong}
        </p>
      )}
      <label>
        {words.key}
        <input
          type="password"
          autocomplete="current-password"
          required
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
      </label>
      <button type="submit" class="main">
        {words.keyEnter}
      </button>
    </form>
  );
}
