// Numbers as people read them; the units are those of the command line.

export function bytes(amount) {
  let size = amount;
  for (const unit of ["B", "kB", "MB"]) {
    if (Math.abs(size) < 999.5) return `${threeDigits(size)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(2)} GB`;
}

export function seconds(amount) {
  if (amount < 9.95) return `${threeDigits(Math.round(amount * 10) / 10)} s`;
  const whole = Math.round(amount);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(amount / 60);
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(minutes / 1440)} days`;
}

export function clock(amount) {
  const whole = Math.max(0, Math.ceil(amount));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = `${String(minutes).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${tail}` : tail;
}

export function loss(amount) {
  const size = Math.abs(amount);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? amount.toExponential(2) : amount.toFixed(3);
}

export function percent(part, whole) {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–";
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function time(secondsSince1970) {
  return new Date(1000 * secondsSince1970).toLocaleTimeString();
}

export function moment(secondsSince1970) {
  const options = { dateStyle: "medium", timeStyle: "short" };
  return new Date(1000 * secondsSince1970).toLocaleString(undefined, options);
}

function threeDigits(number) {
  return String(Number(number.toPrecision(3)));
}
