// Prints, for each URL on stdin (a JSON list), the host that WHATWG's parser connects to.
import { createInterface } from "node:readline";

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(JSON.parse(line).map((u) => {
    try {
      return { whatwg: new URL(u).hostname || null };
    } catch {
      return { whatwg: null };
    }
  })));
}
