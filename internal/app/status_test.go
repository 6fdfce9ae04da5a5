package app_test

import (
	"context"
	"testing"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// cutOff refuses new connections to the service's database and ends the existing ones.
// allow undoes this; it also runs when the test ends.
func cutOff(t *testing.T, s *apptest.Service) (allow func()) {
	t.Helper()

	address, err := pgtest.Setting("MILLRACE_TEST_DATABASE_URL")
	if err != nil {
		t.Fatal(err)
	}

	name, admin := apptest.Value[string](s, `SELECT current_database()::text`), connect(t, address)
	exec := func(sql string, args ...any) {
		if _, err := admin.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	allow = func() { exec(`ALTER DATABASE ` + name + ` ALLOW_CONNECTIONS true`) }

	t.Cleanup(allow)

	exec(`ALTER DATABASE ` + name + ` ALLOW_CONNECTIONS false`)
	exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)

	return allow
}

func TestAnIdleServiceNoticesThatPostgresIsUnavailable(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	state := s.Dependencies.Get(postgres.Dependency).State
	allow := cutOff(t, s)

	pgtest.Eventually(t, "the state shows when and why postgres became unavailable", func() bool {
		now := state()

		return !now.Up && now.Since != nil && now.Why != ""
	})

	allow()
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
