// Sets of rows as bit masks (bit i % 8 of byte i / 8 is row i) and as sorted rows.

export function maskOf(rows, count) {
  const mask = new Uint8Array(Math.ceil(count / 8));
  for (const row of rows) mask[row >> 3] |= 1 << (row & 7);
  return mask;
}

export function has(mask, row) {
  return (mask[row >> 3] & (1 << (row & 7))) !== 0;
}

export function rowsOf(mask, count) {
  const rows = [];
  for (let row = 0; row < count; row += 1) if (has(mask, row)) rows.push(row);
  return Int32Array.from(rows);
}

export function rowsWhere(count, test) {
  const rows = new Int32Array(count);
  let found = 0;
  for (let row = 0; row < count; row += 1) if (test(row)) rows[found++] = row;
  return rows.slice(0, found);
}
