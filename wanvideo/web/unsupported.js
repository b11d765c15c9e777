// Sockets that this pack always refuses are there only while something is linked to them, as it is in others' graphs.

import { app } from "../../scripts/app.js";

function unsupportedOf({ input }) {
    const inputs = { ...input?.required, ...input?.optional };
    return new Set(Object.keys(inputs).filter((name) => inputs[name][1]?.unsupported));
}

app.registerExtension({
    name: "wanvideo.unsupported",
    beforeRegisterNodeDef(nodeType, nodeData) {
        const names = unsupportedOf(nodeData);
        if (!names.size) return;
        const hideAfter = (method) => {
            const before = nodeType.prototype[method];
            nodeType.prototype[method] = function (...values) {
                const answer = before?.apply(this, values);
                // From the last one, so that the places of the others stay; the page then numbers its links anew.
                for (let at = this.inputs.length - 1; at >= 0; at--)
                    if (names.has(this.inputs[at].name) && this.inputs[at].link == null) this.inputs.splice(at, 1);
                return answer;
            };
        };
        hideAfter("onNodeCreated");
        hideAfter("onConfigure");
    },
});
