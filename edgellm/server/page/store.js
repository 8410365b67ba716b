// Where conversations are kept: in this browser (IndexedDB), or in this page alone where the browser allows no more.

const NAME = "edgellm";
const TALKS = "conversations";

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Kept {
  constructor(database) {
    this.database = database;
  }

  #talks(mode) {
    return this.database.transaction(TALKS, mode).objectStore(TALKS);
  }

  async all() {
    return (await finished(this.#talks("readonly").getAll())).sort((a, b) => b.updated - a.updated);
  }

  put(talk) {
    return finished(this.#talks("readwrite").put(structuredClone(talk)));
  }

  remove(id) {
    return finished(this.#talks("readwrite").delete(id));
  }
}

class Passing {
  constructor() {
    this.talks = new Map();
  }

  async all() {
    return [...this.talks.values()];
  }

  async put(talk) {
    this.talks.set(talk.id, talk);
  }

  async remove(id) {
    this.talks.delete(id);
  }
}

/** The store, and whether it keeps anything beyond this page. */
export async function open() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TALKS, { keyPath: "id" });
    return { store: new Kept(await finished(request)), keeps: true };
  } catch {
    return { store: new Passing(), keeps: false };
  }
}

/** Small settings of this browser. */
export const browser = {
  get(name) {
    try {
      return localStorage.getItem(`edgellm.${name}`) ?? sessionStorage.getItem(`edgellm.${name}`) ?? "";
    } catch {
      return "";
    }
  },
  set(name, value, forGood = true) {
    try {
      const kept = forGood ? localStorage : sessionStorage;
      if (value) kept.setItem(`edgellm.${name}`, value);
      else kept.removeItem(`edgellm.${name}`);
    } catch {
      // a browser that keeps nothing; the page works without
    }
  },
};
