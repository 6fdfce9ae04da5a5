package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/millracehq/millrace/internal/engine/event"
)

//go:embed faststream/schema.sql
var guideSchema string

// guideOrders is the load "orders" for the FastStream guide's application, which has its
// own tables.
func guideOrders(products int) load {
	return load{
		name:    "orders",
		message: func(i int) event.Payload { return newOrder(i, products, "order-"+strconv.Itoa(i)) },
		prepare: func(ctx context.Context, s *site, _ int) error {
			if _, err := s.pool.Exec(ctx, guideSchema); err != nil {
				return err
			}

			_, err := s.pool.Exec(ctx, `INSERT INTO guide.inventory (product_id, available)
				SELECT 'sku_' || i, 1000000000 FROM generate_series(0, $1 - 1) AS i`, products)

			return err
		},
		done:    `SELECT count(*) FROM guide.orders WHERE status = 'completed'`,
		elapsed: `SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(created_at))::float8 FROM guide.orders`,
	}
}

// newFastStream installs the packages that the guide's application needs, and returns its
// process.
func (s *site) newFastStream(ctx context.Context) (*process, error) {
	install := exec.CommandContext(ctx, "scripts/python.sh", "cmd/bench/faststream")
	install.Stderr = os.Stderr

	python, err := install.Output()
	if err != nil {
		return nil, fmt.Errorf("installing FastStream: %w", err)
	}

	cmd := exec.CommandContext(ctx, strings.TrimSpace(string(python)), "cmd/bench/faststream/app.py")
	cmd.Env = append(os.Environ(),
		"DATABASE_URL="+string(s.cfg.Postgres.URL),
		"KAFKA_BROKERS="+strings.Join(s.cfg.Broker.Kafka.Brokers, ","),
		"KAFKA_GROUP="+s.name,
	)

	return &process{cmd: cmd}, nil
}
