package upkeep

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func newJanitor(pool *pgxpool.Pool, logger *slog.Logger, registries ...*prometheus.Registry) *Janitor {
	cfg := DefaultConfig()
	cfg.OldTransaction = time.Second

	return New(cfg, pool, logger, append(registries, prometheus.NewRegistry())[0])
}

func TestOneProcessAtATimeRunsUpkeep(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	one, two := newJanitor(pool, pgtest.Logger(t)), newJanitor(pool, pgtest.Logger(t))
	one.Add(Task{Name: "whatever", Do: func(ctx context.Context) (int64, error) {
		if _, err := two.Do(ctx); !errors.Is(err, postgres.ErrLocked) {
			t.Errorf("the second process got %v, expected ErrLocked", err)
		}

		return 3, nil
	}})

	done, err := one.Do(t.Context())
	if err != nil || len(done) != 1 || done[0].Removed != 3 {
		t.Errorf("got %+v, %v", done, err)
	}

	if _, err := two.Do(t.Context()); err != nil {
		t.Errorf("it is still locked: %v", err)
	}
}

func TestAFailingTaskDoesNotBlockOthers(t *testing.T) {
	t.Parallel()

	var log bytes.Buffer

	ran, fails := 0, true
	j := newJanitor(pgtest.New(t), slog.New(slog.NewTextHandler(&log, nil)))
	j.Add(
		Task{Name: "first", Do: func(context.Context) (int64, error) {
			if fails {
				return 0, errors.New("the table is locked")
			}

			return 1, nil
		}},
		Task{Name: "second", Do: func(context.Context) (int64, error) { ran++; return 2, nil }},
	)

	for range 2 {
		if again := j.round(t.Context()); again != retryRound {
			t.Errorf("retried after %s", again)
		}
	}

	fails = false

	if next := j.round(t.Context()); next != j.cfg.Every || ran != 3 {
		t.Errorf("next after %s, the second task ran %d times", next, ran)
	}

	for text, times := range map[string]int{"first: the table is locked": 1, "upkeep recovered": 1, "task=second removed=2": 3} {
		if n := strings.Count(log.String(), text); n != times {
			t.Errorf("%q is logged %d times, expected %d:\n%s", text, n, times, log.String())
		}
	}
}

func TestAnOldTransactionIsReported(t *testing.T) {
	t.Parallel()

	var (
		log      bytes.Buffer
		j        *Janitor
		registry *prometheus.Registry
	)

	pool := pgtest.New(t)

	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	for _, sql := range []string{`SET application_name = 'forgotten'`, `BEGIN`, `SELECT 'secret'`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	// Other tests on the server may temporarily have an older transaction.
	pgtest.Eventually(t, "it is reported", func() bool {
		log.Reset()

		registry = prometheus.NewRegistry()
		j = newJanitor(pool, slog.New(slog.NewTextHandler(&log, nil)), registry)
		j.watch(t.Context())

		return strings.Contains(log.String(), "application=forgotten")
	})

	j.watch(t.Context())

	if n := strings.Count(log.String(), "application=forgotten"); n != 1 || !strings.Contains(log.String(), `state="idle in transaction"`) || strings.Contains(log.String(), "secret") {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}

	measured, err := registry.Gather()
	if err != nil || len(measured) != 1 || measured[0].GetMetric()[0].GetGauge().GetValue() < 1 {
		t.Errorf("the metric is %v, %v", measured, err)
	}

	if old, err := j.Old(t.Context()); err != nil || old == nil {
		t.Errorf("got %v, %v", old, err)
	}

	j.cfg.OldTransaction = time.Hour
	j.watch(t.Context())

	if !strings.Contains(log.String(), "the long-running transaction has ended") {
		t.Errorf("logged:\n%s", log.String())
	}
}
