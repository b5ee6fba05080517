// The page of `mmvars steer`: what is asked, what was answered, and what of it is shown.
const $ = (id) => document.getElementById(id);

const VIEWS = [
  ['input', 'Input', 'what you show'],
  ['bottom_up', 'Bottom-up', 'attention of pass 1'],
  ['token_weights', 'Token weights', 'likeness to the prompt'],
  ['heatmap', 'Asked for', 'probability'],
  ['attention', 'Top-down', 'attention of pass 2'],
  ['labels', 'Segmentation', 'class of each pixel'],
  ['shift', 'Difference', 'to the answer without prompt'],
];
const MOST_STEPS = 60;
const MOST_THUMBNAILS = 200;

let model;
let image = null; // {source, label, image, width, height, original, picture, plain}
let onServer = null; // the image that the server holds for us
let steps = []; // {image, prior, alpha, answer, pictures, parent, redo}
let shown = null; // one of them, or a preview that is not among them
let view = 'labels';
let cross = null; // [x, y] of the keyboard's cross
let corner = null; // where a box began
let lastPick = 0; // the image asked for last wins

// ---------------------------------------------------------------------------------------- server

class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, body, type = 'application/json') {
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : { method: 'POST', body, headers: { 'Content-Type': type } });
  } catch {
    throw new Refused('The server does not answer: is `mmvars steer` still running?', 0);
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}` }));
  if (!response.ok) throw new Refused(answer.error, response.status);
  return answer;
}

async function setOnServer(source) {
  const answer = source.file
    ? await send('api/upload', source.file, 'application/octet-stream')
    : await send('api/image', JSON.stringify({ name: source.name }));
  onServer = answer.image;
  return answer;
}

async function decoded(url) {
  const element = new Image();
  element.src = url;
  await element.decode();
  return element;
}

async function decodedViews(answer) {
  const pairs = Object.entries(answer.views).map(async ([name, { url }]) => [name, await decoded(url)]);
  return Object.fromEntries(await Promise.all(pairs));
}

// ----------------------------------------------------------------------------------------- image

async function pick(source, label) {
  const number = ++lastPick;
  if (source.file && source.file.size > model.max_upload) {
    say(`${label} is larger than ${Math.floor(model.max_upload / 1e6)} MB.`, true);
    return;
  }
  const kept = $('keep').checked && shown?.prior ? portable(shown) : null;
  const alpha = shown?.alpha ?? null;
  busy(true);
  say(`Looking at ${label} …`);
  try {
    const answer = await setOnServer(source);
    const picture = await decoded(answer.picture);
    const pictures = await decodedViews(answer.plain);
    if (number !== lastPick) return;
    image = { source, label, ...answer, picture };
    cross = corner = null;
    commit({ image, prior: null, alpha: null, answer: answer.plain, pictures, parent: null });
    for (const button of $('images').children) button.setAttribute('aria-pressed', button.name === source.name);
    const [width, height] = image.original;
    const scaled = width === image.width ? '' : `, scaled down from ${width} × ${height}`;
    say(`${label}, ${image.width} × ${image.height} pixels${scaled}. ${model.steerable ? 'Click on what to look for.' : ''}`);
    if (kept) ask(kept, alpha);
  } catch (error) {
    fail(error);
  } finally {
    if (number === lastPick) busy(false);
  }
}

// A prompt that means the same in another image: places become what they mean.
function portable({ prior, answer }) {
  if ('class' in prior || 'text' in prior || 'vector' in prior) return prior;
  return { vector: answer.vector, label: `like the ${describe(prior)} in ${image.label}` };
}

// ---------------------------------------------------------------------------------------- prompt

let running = false;
let waiting = null;

// Ask for a prompt; while one is asked, the newest of those that came meanwhile waits.
async function ask(prior, alpha, keep = true) {
  if (!prior && !model.scales_without_prior) alpha = null;
  waiting = { image, prior, alpha, keep };
  if (running || !image) return;
  running = true;
  busy(true);
  while (waiting) {
    const job = waiting;
    waiting = null;
    try {
      await answerTo(job);
    } catch (error) {
      fail(error, job);
      refresh();
    }
  }
  running = false;
  busy(false);
}

async function answerTo(job) {
  if (job.image !== image) return;
  if (shown?.image === job.image && sameQuestion(shown, job)) {
    if (job.keep && shown.preview) commit({ ...shown, preview: false });
    return;
  }
  if (onServer !== job.image.image) Object.assign(job.image, await setOnServer(job.image.source), { picture: job.image.picture });
  const { label, ...prior } = job.prior ?? {};
  const start = performance.now();
  const answer = await send('api/predict', JSON.stringify({ image: job.image.image, prior: job.prior && prior, alpha: job.alpha }));
  const seconds = (performance.now() - start) / 1000;
  const pictures = await decodedViews(answer);
  if (job.image !== image) return;
  const base = shown.preview ? shown.parent : shown;
  const step = { ...job, answer, pictures, parent: base };
  if (job.keep) commit(step);
  else display({ ...step, preview: true });
  notice(null);
  say(`${sentence(step)} (${seconds.toFixed(2)} s)`);
}

function sameQuestion(a, b) {
  return a.alpha === b.alpha && JSON.stringify(a.prior) === JSON.stringify(b.prior);
}

function sentence({ prior, answer }) {
  if (!prior) return 'Without a prompt.';
  const gained = answer.classes.reduce((best, row) => (row.shift > best.shift ? row : best));
  const change = gained.shift > 5e-4 ? `most is gained by ${model.classes[gained.number].name}: ${points(gained.shift)} points` : 'no class gains';
  return `Asked for ${describe(prior)}: ${change}.`;
}

function describe(prior) {
  if (!prior) return 'nothing';
  if (prior.label) return prior.label;
  if ('class' in prior) return model.priors.find(({ number }) => number === prior.class).name;
  if ('text' in prior) return `“${prior.text}”`;
  if ('box' in prior) return 'box';
  if ('vector' in prior) return 'kept prompt';
  const yes = prior.labels.filter((label) => label).length;
  const no = prior.labels.length - yes;
  return `${yes} place${yes > 1 ? 's' : ''}${no ? `, not ${no}` : ''}`;
}

function mark(point, label) {
  if (!ready()) return;
  const old = shown.prior && 'points' in shown.prior ? shown.prior : { points: [], labels: [] };
  const near = 12 * (image.width / $('stage').clientWidth);
  const hit = old.points.findIndex(([x, y]) => Math.hypot(x - point[0], y - point[1]) < near);
  let { points: places, labels } = old;
  if (hit >= 0) {
    places = places.filter((_, i) => i !== hit);
    labels = labels.filter((_, i) => i !== hit);
  } else {
    places = [...places, point];
    labels = [...labels, label];
  }
  if (labels.includes(1)) ask({ points: places, labels }, shown.alpha);
  else if (hit >= 0) ask(null, shown.alpha);
  else say('First mark something to look for; then, what is not meant.', true);
}

function markBox([ax, ay], [bx, by]) {
  if (!ready()) return;
  const box = [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
  if (box[2] - box[0] < 2 || box[3] - box[1] < 2) {
    say('Draw the box from one corner to the opposite one.', true);
    draw();
  } else ask({ box }, shown.alpha);
}

function ready() {
  if (!model?.steerable) say('This model takes no prompt.', true);
  else if (!image) say('First choose an image.', true);
  return Boolean(model?.steerable && image);
}

// --------------------------------------------------------------------------------------- history

function commit(step) {
  if (step.parent) step.parent.redo = step;
  step.thumbnail = thumbnailOf(step);
  steps.push(step);
  if (steps.length > MOST_STEPS) steps.shift();
  display(step);
  listHistory();
  $('history').scrollLeft = $('history').scrollWidth; // the page itself stays where it is
}

function display(step) {
  waiting = step.preview ? waiting : null;
  if (step.image !== image) {
    image = step.image;
    for (const button of $('images').children) button.setAttribute('aria-pressed', button.name === image.source.name);
  }
  shown = step;
  refresh();
}

function recall(step) {
  lastPick++;
  display(step);
  say(`${describe(step.prior)} in ${step.image.label}, as it was.`);
}

function undo() {
  const target = shown?.preview ? shown.parent : shown?.parent;
  if (target) recall(target);
}

function redo() {
  if (shown?.redo) recall(shown.redo);
}

function thumbnailOf(step) {
  const canvas = document.createElement('canvas');
  const scale = 224 / Math.max(step.image.width, step.image.height);
  canvas.width = Math.max(1, Math.round(step.image.width * scale));
  canvas.height = Math.max(1, Math.round(step.image.height * scale));
  const name = step.prior ? ['heatmap', 'token_weights', 'labels'].find((v) => step.pictures[v]) : 'labels';
  paint(canvas.getContext('2d'), step, name, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', 0.8);
}

function listHistory() {
  $('history').replaceChildren(...steps.map((step) => {
    const entry = document.createElement('li');
    const button = document.createElement('button');
    const picture = document.createElement('img');
    const text = document.createElement('span');
    picture.src = step.thumbnail;
    picture.alt = '';
    text.textContent = (step.prior ? describe(step.prior) : 'no prompt') + (step.alpha === null ? '' : `, α ${step.alpha}`);
    button.type = 'button';
    button.title = step.image.label;
    button.append(picture, text);
    button.onclick = () => recall(step);
    entry.append(button);
    return entry;
  }));
  markHistory();
}

function markHistory() {
  [...$('history').querySelectorAll('button')].forEach((button, i) => button.setAttribute('aria-current', steps[i] === shown));
}

// --------------------------------------------------------------------------------------- picture

const strength = () => Number($('strength').value);

// The picture, a view over it, and the marks of the prompt, into a rectangle of a canvas.
function paint(context, step, name, left, top, width, height, marks = true, unit = Math.max(width / 700, 0.4)) {
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = 'high';
  context.globalAlpha = 1;
  context.drawImage(step.image.picture, left, top, width, height);
  if (step.pictures[name]) {
    context.globalAlpha = strength();
    context.drawImage(step.pictures[name], left, top, width, height);
    context.globalAlpha = 1;
  }
  if (marks && step.prior) paintMarks(context, step.prior, left, top, width / step.image.width, unit);
}

function paintMarks(context, prior, left, top, scale, unit) {
  for (const [i, [x, y]] of (prior.points ?? []).entries()) {
    const px = left + x * scale;
    const py = top + y * scale;
    const like = prior.labels[i] === 1;
    context.beginPath();
    context.arc(px, py, 9 * unit, 0, 2 * Math.PI);
    context.fillStyle = like ? '#15803d' : '#c2264b';
    context.fill();
    context.strokeStyle = '#fff';
    context.lineWidth = 2.5 * unit;
    context.stroke();
    context.beginPath();
    context.moveTo(px - 4 * unit, py);
    context.lineTo(px + 4 * unit, py);
    if (like) {
      context.moveTo(px, py - 4 * unit);
      context.lineTo(px, py + 4 * unit);
    }
    context.stroke();
  }
  if (prior.box) strokeBox(context, prior.box, left, top, scale, unit);
}

function strokeBox(context, [x0, y0, x1, y1], left, top, scale, unit) {
  for (const [color, width] of [['#000a', 5], ['#fff', 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width * unit;
    context.strokeRect(left + x0 * scale, top + y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
  }
}

function draw() {
  const stage = $('stage');
  if (!image) return;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.round(stage.clientWidth * ratio);
  const height = Math.round((width * image.height) / image.width);
  if (stage.width !== width || stage.height !== height) Object.assign(stage, { width, height });
  const context = stage.getContext('2d');
  const unit = ratio * Math.max(0.8, Math.min(1.1, stage.clientWidth / 700));
  paint(context, shown, view, 0, 0, width, height, true, unit);
  const scale = width / image.width;
  const keyboard = cross && stage.matches(':focus-visible');
  if (corner && (corner.end || keyboard)) {
    const [bx, by] = corner.end ?? cross;
    strokeBox(context, [corner.start[0], corner.start[1], bx, by], 0, 0, scale, unit);
  }
  if (keyboard) {
    const [x, y] = cross.map((value) => value * scale);
    for (const [color, line] of [['#000', 5], ['#fff', 2]]) {
      context.strokeStyle = color;
      context.lineWidth = line * ratio;
      context.beginPath();
      context.moveTo(x - 16 * ratio, y);
      context.lineTo(x + 16 * ratio, y);
      context.moveTo(x, y - 16 * ratio);
      context.lineTo(x, y + 16 * ratio);
      context.stroke();
    }
  }
}

// ------------------------------------------------------------------------------------- all else

function refresh() {
  if (!shown) return;
  const { prior, alpha, answer } = shown;
  for (const [name] of VIEWS) refreshPanel(name);
  if (view !== 'input' && !shown.pictures[view]) setView('labels' in shown.pictures ? 'labels' : 'input');
  $('prompt').textContent = prior ? describe(prior) : 'none: the network as it is';
  $('class').value = prior && 'class' in prior ? String(prior.class) : '';
  if (prior && 'text' in prior) $('text').value = prior.text;
  const own = image.plain.alpha;
  $('alpha-row').hidden = own === null;
  $('alpha').disabled = !prior && !model.scales_without_prior;
  if (own !== null) {
    const most = own > 0 ? 3 * own : 3;
    Object.assign($('alpha'), { max: most, step: most / 60 });
    const mine = alpha ?? own;
    if (document.activeElement !== $('alpha') || !running) $('alpha').value = mine;
    showAlpha(mine);
    $('alpha-max').textContent = round(most);
    $('alpha-marks').replaceChildren(...[0, own].map((value) => Object.assign(document.createElement('option'), { value })));
  }
  $('undo').disabled = !shown.parent;
  $('redo').disabled = !shown.redo;
  $('clear').disabled = !prior && alpha === null;
  listClasses(answer, image.plain);
  markHistory();
  draw();
}

function refreshPanel(name) {
  const panel = $(`panel-${name}`);
  const [base, map] = panel.querySelectorAll('img');
  base.src = image.picture.src;
  map.hidden = !shown.pictures[name];
  if (shown.pictures[name]) map.src = shown.pictures[name].src;
  map.style.opacity = strength();
  panel.disabled = name !== 'input' && !shown.pictures[name];
  const range = shown.answer.views[name];
  panel.querySelector('small').textContent = panel.disabled ? (model.steerable ? 'with a prompt' : 'not of this model')
    : range?.high === undefined ? VIEWS.find(([other]) => other === name)[2]
    : `${short(range.low)} to ${short(range.high)}`;
}

function setView(name) {
  view = name;
  for (const [other] of VIEWS) $(`panel-${other}`).setAttribute('aria-pressed', other === name);
  draw();
}

function listClasses({ classes }, plain) {
  const isMap = Boolean(shown.pictures.labels);
  $('share-title').textContent = isMap ? 'Area' : 'Probability';
  $('before-title').hidden = $('shift-title').hidden = !shown.prior;
  const rows = classes
    .map((row) => ({ ...row, before: plain.classes[row.number].share }))
    .filter((row) => row.share + row.before > 5e-4 || Math.abs(row.shift) > 5e-4 || row.number === shown.prior?.class)
    .sort((a, b) => b.share - a.share || b.before - a.before)
    .slice(0, 30);
  $('classes').replaceChildren(...rows.map((row) => {
    const line = document.createElement('tr');
    const name = document.createElement('td');
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.style.background = model.classes[row.number].color;
    name.append(swatch, model.classes[row.number].name);
    line.append(name, cell(percent(row.share)));
    if (shown.prior) line.append(cell(percent(row.before)), cell(points(row.shift), Math.abs(row.shift) < 5e-4 ? '' : row.shift > 0 ? 'up' : 'down'));
    return line;
  }));
}

function cell(text, kind = '') {
  return Object.assign(document.createElement('td'), { textContent: text, className: kind });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const points = (shift) => `${shift > 0 ? '+' : shift < 0 ? '−' : ''}${Math.abs(100 * shift).toFixed(1)}`;
const round = (value) => Number(value.toPrecision(3)).toString();
const short = (value) => Number(value.toPrecision(2)).toString();

function showAlpha(value) {
  $('alpha-value').textContent = value === 0 ? '0, off' : round(value) + (value === image.plain.alpha ? ', the model’s own' : '');
}

function say(text, isError = false) {
  $('status').textContent = text;
  $('status').classList.toggle('error', isError);
}

function busy(yes) {
  $('frame').classList.toggle('busy', yes);
  $('frame').setAttribute('aria-busy', yes);
}

function fail(error, job = null) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 409 || error.status === 410) {
    onServer = null;
    notice(`${error.message}.`, job);
  }
  say(error.message, true);
}

// What others did to the session: nothing is lost, the image goes to the server again.
function notice(text, job) {
  $('notice').hidden = text === null;
  $('notice').firstElementChild.textContent = text;
  const again = $('notice').querySelector('button');
  again.hidden = !job;
  again.onclick = () => {
    notice(null);
    $('stage').focus();
    if (job.image === image) ask(job.prior, job.alpha, job.keep);
  };
}

// ------------------------------------------------------------------------------------------ save

function save(blob, suffix) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `${image.label.replace(/.*\//, '').replace(/\.\w+$/, '')}_steer.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`Saved ${link.download}.`);
}

function savePicture() {
  if (!image) return;
  const names = VIEWS.filter(([name]) => name === 'input' || shown.pictures[name]);
  const columns = Math.min(names.length, 4);
  const width = 480;
  const height = Math.round((width * image.height) / image.width);
  const gap = 12;
  const caption = 30;
  const rows = Math.ceil(names.length / columns);
  const canvas = document.createElement('canvas');
  canvas.width = columns * (width + gap) + gap;
  canvas.height = rows * (height + caption + gap) + gap + 30;
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  names.forEach(([name, title], i) => {
    const left = gap + (i % columns) * (width + gap);
    const top = gap + Math.floor(i / columns) * (height + caption + gap);
    context.font = '600 17px system-ui, "DejaVu Sans", sans-serif';
    context.fillStyle = '#1c2422';
    const range = shown.answer.views[name];
    context.fillText(title + (range?.high === undefined ? '' : ` (${round(range.low)} to ${round(range.high)})`), left, top + 20, width);
    paint(context, shown, name, left, top + caption, width, height, name === 'input');
  });
  context.font = '15px system-ui, "DejaVu Sans", sans-serif';
  context.fillStyle = '#1c2422';
  const alpha = shown.answer.alpha === null ? '' : `, α = ${round(shown.answer.alpha)}`;
  context.fillText(`${image.label}: asked for ${describe(shown.prior)}${alpha}`, gap, canvas.height - 16, canvas.width - 2 * gap);
  canvas.toBlob((blob) => save(blob, 'png'), 'image/png');
}

function saveJson() {
  if (!image) return;
  const { label, ...prior } = shown.prior ?? {};
  const content = {
    image: image.label,
    size: [image.width, image.height],
    original_size: image.original,
    prior: shown.prior && prior,
    alpha: shown.answer.alpha,
    vector: shown.answer.vector,
    classes: shown.answer.classes.map(({ number, share, probability, shift }) => ({
      number, name: model.classes[number].name, share, share_without: image.plain.classes[number].share, probability, shift,
    })),
  };
  save(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' }), 'json');
}

// ----------------------------------------------------------------------------------------- input

function place(event) {
  const area = $('stage').getBoundingClientRect();
  const inside = (value, side) => Math.min(Math.max(value, 0), side - 0.01);
  return [
    inside(((event.clientX - area.left) / area.width) * image.width, image.width),
    inside(((event.clientY - area.top) / area.height) * image.height, image.height),
  ].map((value) => Math.round(value * 100) / 100);
}

const tool = () => document.querySelector('[name=tool]:checked').value;

function connectStage() {
  const stage = $('stage');
  stage.addEventListener('click', (event) => {
    if (!image || tool() === 'box') return;
    cross = place(event);
    mark(cross, event.shiftKey || tool() === '0' ? 0 : 1);
  });
  stage.addEventListener('pointerdown', (event) => {
    if (!image || tool() !== 'box' || event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    corner = { start: place(event), end: place(event) };
  });
  stage.addEventListener('pointermove', (event) => {
    if (!image) return;
    probe(place(event));
    if (corner?.end) {
      corner.end = place(event);
      draw();
    }
  });
  stage.addEventListener('pointerup', () => {
    if (!corner?.end) return;
    const { start, end } = corner;
    corner = null;
    markBox(start, end);
  });
  for (const name of ['pointercancel', 'blur']) stage.addEventListener(name, () => { corner = null; draw(); });
  stage.addEventListener('pointerleave', () => { $('probe').textContent = ''; });
  stage.addEventListener('focus', draw);
  stage.addEventListener('keydown', stageKey);
  new ResizeObserver(draw).observe(stage);
}

// The class under the pointer, by its color.
const probeCanvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
const probeContext = probeCanvas.getContext('2d', { willReadFrequently: true });

function probe([x, y]) {
  let name = '';
  if (shown.pictures.labels) {
    probeContext.drawImage(shown.pictures.labels, Math.floor(x), Math.floor(y), 1, 1, 0, 0, 1, 1);
    const color = `#${[...probeContext.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((v) => v.toString(16).padStart(2, '0')).join('')}`;
    name = model.classes.find((entry) => entry.color === color)?.name ?? '';
  }
  $('probe').textContent = `${Math.floor(x)}, ${Math.floor(y)}  ${name}`;
}

function stageKey(event) {
  if (!image || event.ctrlKey || event.metaKey || event.altKey) return;
  const reach = (event.shiftKey ? 0.1 : 0.02) * Math.max(image.width, image.height);
  const moves = { ArrowLeft: [-reach, 0], ArrowRight: [reach, 0], ArrowUp: [0, -reach], ArrowDown: [0, reach] };
  const middle = () => (cross ??= [Math.round(image.width / 2), Math.round(image.height / 2)]);
  const number = Number(event.key);
  if (moves[event.key]) {
    const clamp = (value, side) => Math.round(Math.min(Math.max(value, 0), side - 1));
    const [x, y] = middle();
    cross = [clamp(x + moves[event.key][0], image.width), clamp(y + moves[event.key][1], image.height)];
    say(`Cross at ${cross[0]}, ${cross[1]}`);
    draw();
  } else if (event.key === 'Enter' || event.key === ' ') {
    mark(middle(), event.shiftKey || tool() === '0' ? 0 : 1);
  } else if (event.key.toLowerCase() === 'b') {
    if (corner) {
      const { start } = corner;
      corner = null;
      markBox(start, middle());
    } else {
      corner = { start: middle() };
      say('The box begins here: move the cross, and press B again.');
      draw();
    }
  } else if (event.key === 'Escape') {
    if (corner) corner = null;
    else clearPrompt();
    draw();
  } else if (number >= 1 && number <= VIEWS.length) {
    const panel = $(`panel-${VIEWS[number - 1][0]}`);
    if (!panel.disabled && !panel.hidden) setView(VIEWS[number - 1][0]);
  } else if (event.key === '[' || event.key === ']') {
    if ($('alpha-row').hidden || $('alpha').disabled || !model.steerable) return;
    const slider = $('alpha');
    if (event.key === '[') slider.stepDown(3);
    else slider.stepUp(3);
    slider.dispatchEvent(new Event('change'));
  } else if (event.key.toLowerCase() === 's') savePicture();
  else if (event.key.toLowerCase() === 'j') saveJson();
  else if (event.key === '?') $('help').showModal();
  else return;
  event.preventDefault();
}

function alphaAsked() {
  const value = Number(round(Number($('alpha').value)));
  return value === image.plain.alpha ? null : value;
}

function clearPrompt() {
  if (image && (shown.prior || shown.alpha !== null)) ask(null, null);
}

function connectControls() {
  $('class').onchange = ({ target }) => ready() && ask(target.value === '' ? null : { class: Number(target.value) }, shown.alpha);
  $('text-form').onsubmit = (event) => {
    event.preventDefault();
    const text = $('text').value.trim();
    if (text && ready()) ask({ text }, shown.alpha);
  };
  $('alpha').oninput = () => {
    if (!image) return;
    showAlpha(alphaAsked() ?? image.plain.alpha);
    ask(shown.prior, alphaAsked(), false);
  };
  $('alpha').onchange = () => image && ask(shown.prior, alphaAsked());
  $('alpha-own').onclick = () => image && shown.alpha !== null && ask(shown.prior, null);
  $('undo').onclick = undo;
  $('redo').onclick = redo;
  $('clear').onclick = clearPrompt;
  $('save-png').onclick = savePicture;
  $('save-json').onclick = saveJson;
  $('strength').oninput = () => image && refresh();
  $('help-button').onclick = () => $('help').showModal();
  for (const radio of document.querySelectorAll('[name=tool]')) {
    radio.onchange = () => $('stage').classList.toggle('box', tool() === 'box');
  }
  $('upload').onchange = ({ target }) => {
    if (target.files[0]) pick({ file: target.files[0] }, target.files[0].name);
    target.value = '';
  };
  document.addEventListener('keydown', (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.target.matches('input[type=text], input[type=search]')) return;
    const key = event.key.toLowerCase();
    if (key === 'z' && !event.shiftKey) undo();
    else if (key === 'y' || key === 'z') redo();
    else return;
    event.preventDefault();
  });
}

function connectDrop() {
  let depth = 0;
  const dragging = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle('dragging', depth > 0);
  };
  addEventListener('dragenter', () => dragging(1));
  addEventListener('dragleave', () => dragging(-1));
  addEventListener('dragover', (event) => event.preventDefault());
  addEventListener('drop', (event) => {
    event.preventDefault();
    dragging(-Infinity);
    const file = event.dataTransfer.files[0];
    if (file) pick({ file }, file.name);
  });
}

function listImages() {
  const words = $('filter').value.toLowerCase();
  const names = model.images.filter((name) => name.toLowerCase().includes(words));
  $('images').replaceChildren(...names.slice(0, MOST_THUMBNAILS).map((name) => {
    const button = document.createElement('button');
    const picture = document.createElement('img');
    picture.loading = 'lazy';
    picture.alt = name;
    picture.src = `api/thumbnail/${name.split('/').map(encodeURIComponent).join('/')}`;
    Object.assign(button, { type: 'button', name, title: name });
    button.setAttribute('aria-pressed', image?.source.name === name);
    button.append(picture);
    button.onclick = () => pick({ name }, name);
    return button;
  }));
  $('filter').hidden = model.images.length <= 20;
  const left = names.length - MOST_THUMBNAILS;
  $('count').textContent = `${names.length} of the folder${left > 0 ? `, ${left} of them not listed: filter by name` : ''}`;
}

function makePanels() {
  const views = VIEWS.filter(([name]) => model.steerable || ['input', 'bottom_up', 'labels'].includes(name));
  for (const [name, title] of VIEWS) {
    const panel = document.createElement('button');
    panel.type = 'button';
    panel.id = `panel-${name}`;
    panel.hidden = !views.some(([other]) => other === name);
    panel.disabled = true;
    panel.innerHTML = '<span class="stack"><img alt=""><img alt="" hidden></span><span class="caption"><span></span><small></small></span>';
    panel.querySelector('.caption span').textContent = title;
    panel.onclick = () => setView(name);
    $('panels').append(panel);
  }
  setView(view);
}

async function start() {
  try {
    model = await send('api/model');
  } catch (error) {
    return fail(error);
  }
  makePanels();
  listImages();
  const none = Object.assign(document.createElement('option'), { value: '', textContent: 'choose a class …' });
  $('class').append(none, ...model.priors.map(({ number, name }) => Object.assign(document.createElement('option'), { value: number, textContent: name })));
  $('class').disabled = !model.priors.length;
  if (!model.priors.length) none.textContent = 'none: start with --prototypes FILE';
  $('text-form').hidden = !model.text;
  $('filter').oninput = listImages;
  if (!model.steerable) {
    document.querySelector('main').classList.add('plain');
    $('steer').hidden = $('tools').hidden = true;
    notice('This model cannot be steered: its backbone has no top-down attention that takes a prompt. The page shows its segmentation.');
  }
  connectStage();
  connectControls();
  connectDrop();
  if (model.images.length) pick({ name: model.images[0] }, model.images[0]);
}

start();
