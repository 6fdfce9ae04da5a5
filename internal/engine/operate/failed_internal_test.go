package operate

import (
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func TestASelectionRefusesToSelectEverythingByAccident(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		selection Selection
		ids       []int64
		all       bool
		kind      event.Kind
	}{
		"nothing":           {kind: event.Invalid},
		"all":               {all: true},
		"ids":               {ids: []int64{1}},
		"a filter":          {selection: Selection{Topic: "t"}},
		"a time":            {selection: Selection{Since: event.Time{Time: time.Now()}}},
		"all and a filter":  {selection: Selection{Key: "k"}, all: true, kind: event.Invalid},
		"all and ids":       {ids: []int64{1}, all: true, kind: event.Invalid},
		"a message, not id": {selection: Selection{MessageID: "x"}, kind: event.Invalid},
	} {
		f, err := c.selection.toActOn(c.ids, c.all)
		if event.KindOf(err) != c.kind || f.State != failed.Stopped {
			t.Errorf("%s: got %+v, %v", name, f, err)
		}
	}

	if f, err := (Selection{}).filter("all"); err != nil || f.State != "" {
		t.Errorf("all states: got %+v, %v", f, err)
	}

	if _, err := (Selection{}).filter("poisoned"); event.KindOf(err) != event.Unknown {
		t.Errorf("an unknown state: got %v", err)
	}
}
