import { commandKey, sumsKey } from "../../links/link.ts";
import type { AdapterSums__Output } from "../../rpc/generated/pipelora/v1/AdapterSums.ts";
import type { StepResult__Output } from "../../rpc/generated/pipelora/v1/StepResult.ts";
import type { ToWorker__Output } from "../../rpc/generated/pipelora/v1/ToWorker.ts";
import { addLosses } from "../../rpc/loss-sums.ts";
import { decodeReply, decodeRequest, encodeReply, encodeRequest } from "../../rpc/protocol.ts";
import type { RankLinks } from "../links.ts";
import { fromHost } from "../tensors.ts";

/**
 * One rank's part in passing a step's command and sums along. The coordinator talks only to the first rank of a pipeline: the command goes down
 * the pipeline from it, and the sums come back up to it. The last rank is done first, so sums do not wait.
 */
export class StepRelay {
  readonly #links: RankLinks;
  readonly #before: number | null;
  readonly #after: number | null;
  #passedOn = 0;
  #ended = false;

  /** `ranks`: the pipeline's, in order. */
  constructor(links: RankLinks, ranks: readonly number[], rank: number) {
    const position = ranks.indexOf(rank);
    this.#links = links;
    this.#before = ranks[position - 1] ?? null;
    this.#after = ranks[position + 1] ?? null;
  }

  /** Calls `onCommand` for every command that comes down the pipeline, until end(). Errors: PL_LINK_FAILED. */
  async listen(onCommand: (message: ToWorker__Output) => void): Promise<void> {
    if (this.#before === null) return;
    try {
      for (let step = 0; ; step++) {
        // The command needs no answer.
        onCommand({
          ...decodeRequest(await this.#links.receiveBytesWhenever(this.#before, commandKey(step))),
          request: 0,
        });
      }
    } catch (error) {
      if (!this.#ended) throw error;
    }
  }

  /** Stops listening. Must be called before the links are closed. */
  end(): void {
    this.#ended = true;
  }

  /** Sends the command to the next rank. Errors: PL_LINK_FAILED. */
  async passOn(message: ToWorker__Output): Promise<void> {
    if (this.#after === null) return;
    await this.#send(this.#after, commandKey(this.#passedOn++), encodeRequest(message));
  }

  /**
   * Adds this rank's sums of step `name` to those of the ranks after it. Resolves with the pipeline's sums on its first rank. The others pass
   * theirs on and resolve with null. Errors: PL_LINK_FAILED.
   */
  async collect(name: string, own: StepResult__Output): Promise<StepResult__Output | null> {
    const key = sumsKey(name);
    const behind =
      this.#after === null ? null : decodeReply(await this.#links.receiveBytes(this.#after, key)).stepResult!;
    const sums = behind === null ? own : { parts: own.parts.map((part, index) => add(part, behind.parts[index]!)) };
    if (this.#before === null) return sums;
    await this.#send(this.#before, key, encodeReply({ stepResult: sums }));
    return null;
  }

  #send(toRank: number, key: string, bytes: Buffer): Promise<void> {
    return this.#links.sendWhole(toRank, key, fromHost(bytes, [bytes.length], "uint8"));
  }
}

function add(own: AdapterSums__Output, behind: AdapterSums__Output): AdapterSums__Output {
  return {
    losses: addLosses(own.losses, behind.losses),
    matrixIds: Buffer.concat([own.matrixIds, behind.matrixIds]),
    gradSquares: Buffer.concat([own.gradSquares, behind.gradSquares]),
  };
}
