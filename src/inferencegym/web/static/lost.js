// The message of a page whose stream has broken: one banner, in which only the seconds change.
import { h } from "./dom.js";

export class Lost {
  /** @param {object} ctx of the page */
  constructor(ctx) {
    this.ctx = ctx;
    this.shut = null;
  }

  /** The next attempt is so many seconds away (0: under way); `now()` makes it at once. */
  tell(seconds, now) {
    this.now = now;
    if (!this.shut) {
      // Read out once, and not again every second.
      this.left = h("span", { "aria-live": "off" });
      this.shut = this.ctx.banner("warn", h("span", null, "The connection to the server was lost. ", this.left), { label: "Try now", action: () => this.now() });
    }
    this.left.textContent = seconds > 0 ? `Next attempt in ${seconds} s.` : "Trying…";
  }

  /** It is there again, or nobody waits for it any more. */
  close() {
    this.shut?.();
    this.shut = null;
  }
}
