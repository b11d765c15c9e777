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
            nodeType.prototype[method] = function (saved, ...values) {
                const answer = before?.call(this, saved, ...values);
                // What is linked is said by the saved node: here newer pages still have the graph's links at the places
                // that inputs had in it, and only when all nodes are there move each to the input of its name.
                // A copy, which is in no graph yet or has no number, is linked later: it has what its original has.
                const isCopy = saved && (!this.graph || saved.id === -1);
                const linked = new Set(saved?.inputs?.filter(({ link }) => isCopy || link != null).map(({ name }) => name));
                // From the last one, so that the places of the others stay; the page then numbers its links anew.
                for (let at = this.inputs.length - 1; at >= 0; at--)
                    if (names.has(this.inputs[at].name) && !linked.has(this.inputs[at].name)) this.inputs.splice(at, 1);
                return answer;
            };
        };
        hideAfter("onNodeCreated");
        hideAfter("onConfigure");
    },
});
