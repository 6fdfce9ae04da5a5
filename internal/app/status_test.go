package app_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAnIdleServiceNoticesThatPostgresIsUnavailable(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	name := apptest.Value[string](s, `SELECT current_database()::text`)

	admin, err := pgx.Connect(t.Context(), os.Getenv("MILLRACE_TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}

	allow := func(allowed string) {
		if _, err := admin.Exec(context.Background(), `ALTER DATABASE `+name+` ALLOW_CONNECTIONS `+allowed); err != nil {
			t.Fatal(err)
		}
	}
	state := func() (found breaker.State) {
		for _, d := range s.Dependencies.States() {
			if d.Name == postgres.Dependency {
				found = d
			}
		}

		return found
	}

	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	t.Cleanup(func() { allow("true") })

	allow("false")

	if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the state says since when and why postgres is unavailable", func() bool {
		now := state()

		return !now.Up && now.Since != nil && now.Why != ""
	})

	allow("true")
	pgtest.Eventually(t, "the state says that postgres is up", func() bool { return state().Up })
}

func TestStatusCountsStoppedMessages(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()

	open := func() int64 {
		facts := s.Operator.Facts(t.Context(), 0)
		if len(facts.Gaps) > 0 {
			t.Fatal(facts.Gaps)
		}

		return facts.Counts.Stopped
	}

	s.PublishMessage(event.Message{Topic: "orders.created", Payload: []byte("nonsense")})
	pgtest.Eventually(t, "the message is stopped", func() bool { return open() == 1 })

	id := apptest.Value[int64](s, `SELECT id FROM failed_messages`)
	if _, err := s.Failed.Discard(t.Context(), failed.Filter{IDs: []int64{id}}, activity.Actor{Who: "test", Why: "nonsense"}, failed.Pace{}); err != nil {
		t.Fatal(err)
	}

	if n := open(); n != 0 {
		t.Errorf("%d are stopped, expected none after the discard", n)
	}
}
