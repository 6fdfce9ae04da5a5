package consumer_test

import (
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAPauseEndsByItself(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	by := activity.Actor{Who: "ann", Why: "maintenance of notes"}

	pause := func(lasts time.Duration, want bool) *consumer.Pause {
		t.Helper()

		if changed, err := r.router.Pause(t.Context(), "writer", lasts, by); err != nil || changed != want {
			t.Fatalf("pausing for %s changed something: %t, %v", lasts, changed, err)
		}

		pauses, err := consumer.Pauses(t.Context(), pool)
		if err != nil || len(pauses) != 1 {
			t.Fatalf("got %v, %v", pauses, err)
		}

		return &pauses[0]
	}

	if p := pause(0, true); p.Until != nil {
		t.Errorf("it ends at %s", p.Until)
	}

	first := pause(time.Hour, true)
	if first.Until == nil || first.Until.Sub(first.At) < time.Hour || first.Until.Sub(first.At) > time.Hour+time.Minute {
		t.Errorf("got %+v", first)
	}

	if p := pause(0, true); p.Until != nil || !p.At.Equal(first.At) {
		t.Errorf("a pause without an end: got %+v", p)
	}

	pause(0, false)
	pause(2*time.Second, true)
	pgtest.Eventually(t, "the router has seen the pause", func() bool { return len(r.router.Suspended()) == 1 })
	r.send(message("a", "1"))
	r.settle() // once the pause is over

	if got := r.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}

	got := pgtest.Value[string](t, pool, `SELECT string_agg(who || ' ' || action || ' ' || subject || ' ' || detail, ', ' ORDER BY id) FROM operator_actions`)
	if want := "ann paused writer , ann paused writer for 1h0m0s, ann paused writer , ann paused writer for 2s, millrace resumed writer "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*) FROM paused_consumers`); n != 0 {
		t.Errorf("%d pauses are left", n)
	}
}
