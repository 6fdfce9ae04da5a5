package failed_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAPatchEditsWhatItCanAndListsTheRest(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	other := entry("c", "")
	other.Payload = []byte(`[1]`)
	r.add(entry("a", "x"), entry("b", "y"), other, entry("a", "fixed"))

	patch := func(patch string, pace failed.Pace) failed.Outcome {
		t.Helper()

		o, err := r.Patch(t.Context(), failed.Filter{}, []byte(patch), alice, pace, check)
		if err != nil {
			t.Fatal(err)
		}

		return o
	}

	before := pgtest.Value[string](t, r.pool, `SELECT string_agg(m::text, ';' ORDER BY id) FROM failed_messages m`)

	would := patch(`{"text":"fixed"}`, failed.Pace{DryRun: true})
	if would.Selected != 4 || would.Done != 2 || would.Unchanged != 1 || would.Refused != 1 || would.Refusals[0].ID != 3 ||
		would.RefusedBy[event.Rejected] != 1 || !strings.Contains(would.Refusals[0].Error, "is not a JSON object") {
		t.Errorf("would do %+v", would)
	}

	if len(would.Diffs) != 2 || would.Diffs[0].ID != 1 || !strings.Contains(would.Diffs[0].Diff, "-  \"text\": \"x\"\n+  \"text\": \"fixed\"\n") {
		t.Errorf("would change %+v", would.Diffs)
	}

	if after := pgtest.Value[string](t, r.pool, `SELECT string_agg(m::text, ';' ORDER BY id) FROM failed_messages m`); after != before {
		t.Errorf("the dry run changed something:\n%s\n%s", before, after)
	}

	if o := patch(`{"text":"fixed"}`, failed.Pace{}); o.Done != 2 || o.Consumers["writer"] != 2 {
		t.Errorf("got %+v", o)
	}

	for id, want := range map[int64]string{1: `{"id":"a","text":"fixed"}`, 2: `{"id":"b","text":"fixed"}`, 3: `[1]`} {
		if e := r.get(id); string(e.Current()) != want {
			t.Errorf("message %d: got %s, expected %s", id, e.Current(), want)
		}
	}

	if e := r.get(1); string(e.Payload) != `{"id":"a","text":"x"}` || e.Revision == 1 || r.history(1) != "edited by alice: it is fixed" {
		t.Errorf("got %+v with %s", e, r.history(1))
	}

	// A patch that restores an original leaves no edit behind.
	if patch(`{"text":"x"}`, failed.Pace{}); r.get(1).Edited != nil {
		t.Errorf("got %+v", r.get(1))
	}
}

func TestAPatchIsRefusedWhereItWouldChangeTheKeyOrWhatTheConsumerRejects(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "x"), entry("b", "y"))

	for patch, kind := range map[string]event.Kind{`{"id":"b"}`: event.KeyChange, `{"text":5}`: event.Rejected} {
		o, err := r.Patch(t.Context(), failed.Filter{IDs: []int64{1}}, []byte(patch), alice, failed.Pace{}, check)
		if err != nil || o.Done != 0 || o.RefusedBy[kind] != 1 {
			t.Errorf("%s: got %+v, %v", patch, o, err)
		}
	}

	for _, patch := range []string{``, `null`, `"x"`, `[{"op":"remove","path":"/text"}]`, `{"id":`} {
		_, err := r.Patch(t.Context(), failed.Filter{}, []byte(patch), alice, failed.Pace{}, check)
		if event.KindOf(err) != event.Invalid || !strings.Contains(err.Error(), "expected a JSON object (a merge patch, RFC 7396)") {
			t.Errorf("%s: got %v", patch, err)
		}
	}

	if _, err := r.Patch(t.Context(), failed.Filter{}, []byte(`{}`), activity.Actor{}, failed.Pace{}, check); err == nil {
		t.Error("a patch by nobody was accepted")
	}
}
