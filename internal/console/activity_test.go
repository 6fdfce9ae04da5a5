package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/access"
)

func TestActivityIsFilteredAndExported(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	olga := b.as(access.Operator)
	olga.get("/console/activity").has(t, "Nobody has done anything")

	for _, who := range []string{"ada", "=cmd()"} {
		if _, err := b.Router.Pause(t.Context(), "account.create", 0, actor(who, "Mr Miller called")); err != nil {
			t.Fatal(err)
		}

		if _, err := b.Router.Resume(t.Context(), "account.create", actor(who, "he hung up")); err != nil {
			t.Fatal(err)
		}
	}

	p := olga.get("/console/activity?who=ada&action=paused")
	p.has(t, "Mr Miller called", "account.create", "/console/activity.csv?action=paused&amp;who=ada")
	p.lacks(t, "he hung up", "=cmd()</td>")

	csv := olga.get("/console/activity.csv?action=paused")
	if lines := strings.Split(strings.TrimSpace(csv.html), "\n"); len(lines) != 3 || !strings.Contains(csv.html, ",ada,paused,account.create,,Mr Miller called,") || !strings.Contains(csv.html, ",'=cmd(),") {
		t.Errorf("exported %s", csv.html)
	}

	vera := b.as(access.Viewer)
	vera.get("/console/activity").lacks(t, "Miller")
	vera.get("/console/activity.csv").lacks(t, "Miller")

	if p := vera.get("/console/activity?action=nothing"); p.status != http.StatusNotFound {
		t.Errorf("an unknown action: %d", p.status)
	}
}
