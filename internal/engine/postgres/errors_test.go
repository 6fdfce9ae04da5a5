package postgres_test

import (
	"testing"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestALostConnectionIsUnavailable(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	pgtest.KillBackends(t, pool)

	for _, when := range []string{"while it is lost", "after it is lost"} {
		if _, err := conn.Exec(t.Context(), `SELECT 1`); !postgres.IsUnavailable(err) {
			t.Errorf("%s: got %v", when, err)
		}
	}
}
