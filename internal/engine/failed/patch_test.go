package failed_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

func TestAnExpressionEditsWhatItCanAndListsTheRest(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	other := entry("c", "")
	other.Payload = []byte(`{"id":"c","text":5}`)
	r.add(entry("a", "x"), entry("b", "y"), other)

	for _, c := range []struct {
		expression string
		pace       failed.Pace
		done       int
		refused    map[event.Kind]int
	}{
		{`.text |= ascii_upcase`, failed.Pace{DryRun: true}, 2, map[event.Kind]int{event.Rejected: 1}},
		{`.text |= ascii_upcase`, failed.Pace{}, 2, map[event.Kind]int{event.Rejected: 1}},
		{`if .id == "a" then .id = "b" else .text = 5 end`, failed.Pace{}, 0, map[event.Kind]int{event.KeyChange: 1, event.Rejected: 2}},
	} {
		o, err := r.Transform(t.Context(), failed.Filter{}, c.expression, alice, c.pace, check)
		if diff := cmp.Diff(c.refused, o.RefusedBy); err != nil || o.Done != c.done || diff != "" {
			t.Errorf("%s: got %+v, %v, %s", c.expression, o, err, diff)
		}

		if c.done > 0 && (len(o.Diffs) != 2 || !strings.Contains(o.Diffs[0].Diff, "-  \"text\": \"x\"\n+  \"text\": \"X\"\n")) {
			t.Errorf("%s: got %+v", c.expression, o.Diffs)
		}

		if c.done > 0 && !strings.Contains(o.Refusals[0].Error, "jq: ascii_upcase cannot be applied to: number (5)") {
			t.Errorf("%s: got %+v", c.expression, o.Refusals)
		}

		if c.pace.DryRun && r.get(1).Edited != nil {
			t.Error("the dry run changed something")
		}
	}

	if e := r.get(2); string(e.Current()) != `{"id":"b","text":"Y"}` || r.history(2) != "edited by alice: it is fixed" {
		t.Errorf("got %s with %s", e.Current(), r.history(2))
	}
}

func TestAnExpressionThatIsWrongForAllMessagesEndsTheAction(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "x"), entry("b", "y"))

	for expression, says := range map[string]string{
		`.text = `: "jq: unexpected EOF at character 9",
		`if .id == "b" then def f: f; f else .text = "z" end`: "editing message 2: jq: runs longer than 250ms",
	} {
		o, err := r.Transform(t.Context(), failed.Filter{}, expression, alice, failed.Pace{}, check)
		if event.KindOf(err) != event.Invalid || !strings.Contains(err.Error(), says) || o.Done != 0 || r.get(1).Edited != nil {
			t.Errorf("%s: got %+v, %v", expression, o, err)
		}
	}

	if _, err := r.Transform(t.Context(), failed.Filter{}, `.`, activity.Actor{}, failed.Pace{}, check); err == nil {
		t.Error("an edit by nobody was accepted")
	}
}
