"use strict";
// A page from disk may not start a worker, so there the theme's search runs in a hidden frame. The theme looks for
// IFrameWorker to know where its script came from, and MkDocs' offline plugin for a file of this name.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready = new Promise((done) => {
      this.#frame.hidden = true;
      this.#frame.srcdoc = "<!doctype html>";
      this.#frame.addEventListener("load", done, { once: true });
      document.body.append(this.#frame);
    });

    constructor(address) {
      super();
      this.#ready = this.#ready.then(() => {
        const inside = this.#frame.contentWindow;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        inside.importScripts = (...addresses) =>
          addresses.reduce((done, each) => done.then(() => this.#load(each)), Promise.resolve());
        return this.#load(address);
      });
    }

    #load(address) {
      return new Promise((done, failed) => {
        const script = this.#frame.contentDocument.createElement("script");
        Object.assign(script, { src: new URL(address, location.href).href, onload: done, onerror: failed });
        this.#frame.contentDocument.head.append(script);
      });
    }

    postMessage(data) {
      this.#ready.then(() => {
        const { MessageEvent, dispatchEvent } = this.#frame.contentWindow;
        dispatchEvent.call(this.#frame.contentWindow, new MessageEvent("message", { data }));
      });
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
