// What is dropped as a zip: a zip as it is, folders and files packed without compression. Knows nothing of sets.

export const MOST_BYTES = 64 * 2 ** 20; // of an upload
export const MOST_FILES = 65535; // of a zip without its later extensions

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
function little(...fields) {
  const out = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) out.setUint16(at, value, true);
    else out.setUint32(at, value, true);
    at += size;
  }
  return out.buffer;
}

/** A zip of [path, File], stored as they are (APPNOTE 4.3): pictures are compressed already. */
export async function packed(files) {
  const parts = [];
  const directory = [];
  let at = 0;
  for (const [path, file] of files) {
    const name = new TextEncoder().encode(path);
    const bytes = new Uint8Array(await file.arrayBuffer());
    // version 2.0, names in UTF-8, stored, 1 January 1980
    const about = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, name.length], [2, 0]];
    parts.push(little([4, 0x04034b50], ...about), name, bytes);
    directory.push(little([4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), name);
    at += 30 + name.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = little([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, at], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** The files of what was dropped, as [path, File]; call it while the drop is told of. What begins with a dot is left out. */
export async function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file").map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
  const out = [];
  const walk = async (entry, path) => {
    if (entry.name.startsWith(".") || out.length > MOST_FILES) return;
    if (entry.isFile) out.push([path, await new Promise((done, fail) => entry.file(done, fail))]);
    else {
      const reader = entry.createReader();
      const some = () => new Promise((done, fail) => reader.readEntries(done, fail)); // a hundred at a time
      for (let found = await some(); found.length; found = await some()) for (const one of found) await walk(one, `${path}/${one.name}`);
    }
  };
  for (const [entry, file] of items) {
    if (entry) await walk(entry, entry.name);
    else if (file) out.push([file.name, file]);
  }
  return out;
}
