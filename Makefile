# SPDX-License-Identifier: Apache-2.0
# Only names the tools; everything they do is in tools/.
.PHONY: demo test lab bench down
demo: ; tools/demo
test: ; tools/test
lab: ; tools/slimlab up
down: ; tools/slimlab down
bench: ; tools/bench
