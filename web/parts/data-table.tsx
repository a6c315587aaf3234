import type { ComponentChildren } from "preact";

interface DataTableProps {
  readonly caption: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly ComponentChildren[])[];
  /** All cells but a row's first are numbers. */
  readonly numbers?: boolean;
  /** Each row is one line, however wide that is. */
  readonly lines?: boolean;
}

/** A table that scrolls by itself where a screen is narrow. The first cell names its row. */
export function DataTable({ caption, head, rows, numbers, lines }: DataTableProps) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by the keyboard
    <section class="scroll" tabIndex={0} aria-label={caption}>
      <table class={`${numbers === true ? "numbers" : ""} ${lines === true ? "lines" : ""}`}>
        <caption class="heard">{caption}</caption>
        <thead>
          <tr>
            {head.map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(([first, ...rest], row) => (
            <tr key={row}>
              <th scope="row">{first}</th>
              {rest.map((cell, column) => (
                <td key={column}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
