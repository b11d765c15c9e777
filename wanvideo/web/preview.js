// Shows under a node what its run says of it (progress, warnings, where the result is), and plays under a sampler what
// is finished of its video, with sound, while the rest is made; a window at a time it grows.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const MAX_HEIGHT = 480, MARGIN = 20, VIDEO = "talking_video", TEXT = "talking_text";

const openGraph = () => app.rootGraph ?? app.graph;

// The node of an execution id: "7", or "5:7" for node 7 in the subgraph of node 5.
function findNode(id) {
    let graph = openGraph(), node;
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number(part));
        graph = node?.subgraph;
    }
    return node?.addDOMWidget && node;
}

// Makes a node as high as what it shows; never lower, as its user may have drawn it larger.
function fit(node) {
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    node.setDirtyCanvas(true, true);
}

const elementOf = (node, name) => node.widgets?.find((widget) => widget.name === name)?.element;

// Puts an element under a node, which is no part of a saved graph.
function addElement(node, name, element, height, getValue) {
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height, getValue };
    node.addDOMWidget(name, name, element, options).serialize = false;
    return element;
}

function addPlayer(node) {
    const video = document.createElement("video");
    Object.assign(video, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
    video.style.width = "100%";
    const height = () => Math.min(MAX_HEIGHT, (node.size[0] - MARGIN) * (video.videoHeight / video.videoWidth || 0.6));
    return addElement(node, VIDEO, video, height);
}

function addText(node) {
    const frame = document.createElement("div"), text = document.createElement("div");
    frame.append(text);
    frame.style.overflow = "hidden";
    text.style.cssText = "padding: 4px 8px; font: 12px/1.4 sans-serif; color: var(--input-text); user-select: text; "
        + "white-space: pre-wrap; overflow-wrap: anywhere";
    // While the page puts it in place it may be a letter wide, and as high as it has letters.
    const isPlaced = () => text.offsetWidth > node.size[0] / 2;
    const height = () => (isPlaced() ? text.offsetHeight : 0) + MARGIN;
    new ResizeObserver(() => isPlaced() && fit(node)).observe(text);
    return addElement(node, TEXT, frame, height, () => text.textContent);
}

// Not the page's own text under a node: newer pages remove that with the end of a run, and with it the result's name.
function tell({ node: id, text }) {
    const node = findNode(id), known = node && elementOf(node, TEXT);
    if (node && (known || text)) (known ?? addText(node)).firstChild.textContent = text;
}

function show({ node: id, filename, subfolder, status }) {
    const node = findNode(id);
    if (!node) return;
    const video = elementOf(node, VIDEO) ?? addPlayer(node);
    const { currentTime } = video;
    const query = new URLSearchParams({ filename, subfolder, type: "output", r: Date.now() });  // it grows under one name
    video.title = status;
    video.onloadedmetadata = () => {
        video.currentTime = currentTime;
        fit(node);
    };
    // It goes on where it is, and stays paused where the user has paused it: what is still loading is paused too.
    if (video.readyState === HTMLMediaElement.HAVE_ENOUGH_DATA) video.autoplay = !video.paused;
    video.src = api.apiURL(`/view?${query}`);
}

const SHOWN = { "wanvideo.text": tell, "wanvideo.video": show };
// What came last for nodes of workflows that are not open: their numbers are those of other nodes in the open one.
const waiting = new Map();

function receive({ type, detail }) {
    const { workflow, node } = detail;
    if (!workflow || workflow === openGraph().id) SHOWN[type](detail);
    else waiting.set([type, workflow, node].join(), { type, detail });
}

app.registerExtension({
    name: "wanvideo.preview",
    setup() {
        for (const type of Object.keys(SHOWN)) api.addEventListener(type, receive);
    },
    afterConfigureGraph() {
        for (const [key, event] of waiting) {
            if (event.detail.workflow !== openGraph().id) continue;
            waiting.delete(key);
            receive(event);
        }
    },
});
