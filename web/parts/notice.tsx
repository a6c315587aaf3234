import type { ComponentChildren } from "preact";
import { useWords } from "../language.ts";
import type { ServerError } from "../server.ts";

/** Where there is nothing to show, and why. */
export function Empty({ children }: { readonly children: ComponentChildren }) {
  return <p class="card empty">{children}</p>;
}

/** What an answer lacks: it is on its way, or has failed. */
export function Waiting({ error }: { readonly error: ServerError | null }) {
  const words = useWords();
  if (error === null) return <p class="empty">{words.loading}</p>;
  return (
    <p class="card notice bad" role="alert">
      {error.status === 0 ? words.gone : words.failed(error.message)}
    </p>
  );
}
