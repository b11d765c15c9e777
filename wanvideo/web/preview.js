// Plays under a sampler what is finished of its video, with sound, while the rest is made; a window at a time it grows.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVENT = "wanvideo.video";
const WIDGET = "talking_video";
const MAX_HEIGHT = 480, MARGIN = 20;

// The node of an execution id: "7", or "5:7" for node 7 in the subgraph of node 5.
function findNode(id) {
    let graph = app.rootGraph ?? app.graph, node;
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number(part));
        graph = node?.subgraph;
    }
    return node;
}

function playerOf(node) {
    const known = node.widgets?.find((widget) => widget.name === WIDGET);
    if (known) return known.element;
    const video = document.createElement("video");
    Object.assign(video, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
    video.style.width = "100%";
    const height = () => Math.min(MAX_HEIGHT, (node.size[0] - MARGIN) * (video.videoHeight / video.videoWidth || 0.6));
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    node.addDOMWidget(WIDGET, "video", video, options).serialize = false;
    return video;
}

function show({ node: id, filename, subfolder, status }) {
    const node = findNode(id);
    if (!node?.addDOMWidget) return;
    const video = playerOf(node);
    const { currentTime } = video;
    const query = new URLSearchParams({ filename, subfolder, type: "output", r: Date.now() });  // it grows under one name
    video.title = status;
    video.onloadedmetadata = () => {
        video.currentTime = currentTime;
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
        node.setDirtyCanvas(true, true);
    };
    // It goes on where it is, and stays paused where the user has paused it: what is still loading is paused too.
    if (video.readyState === HTMLMediaElement.HAVE_ENOUGH_DATA) video.autoplay = !video.paused;
    video.src = api.apiURL(`/view?${query}`);
}

app.registerExtension({
    name: "wanvideo.preview",
    setup() {
        api.addEventListener(EVENT, (event) => show(event.detail));
    },
});
