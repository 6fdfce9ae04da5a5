package app_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// startAtOnce starts replicas on an empty database and returns when all are ready.
func startAtOnce(t *testing.T, replicas int, change func(*config.Config)) {
	t.Helper()

	url := pgtest.EmptyURL(t)
	ctx, stop := context.WithCancel(t.Context())

	var ready, running sync.WaitGroup

	for range replicas {
		service := apptest.New(t, url, func(c *config.Config) {
			c.Postgres.MigrateOnStart = true
			c.Postgres.MaxConns = 4
			change(c)
		})

		started := make(chan struct{})

		ready.Add(1)
		running.Go(func() {
			err := service.Service.Run(ctx, func() { close(started); ready.Done() })

			select {
			case <-started:
			default:
				ready.Done()
			}

			if err != nil || ctx.Err() == nil {
				t.Errorf("a replica ended: %v", err)
			}
		})
	}

	ready.Wait()
	stop()
	running.Wait()
}

func TestReplicasCanStartAtOnceOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()

	for range 5 {
		startAtOnce(t, 8, func(*config.Config) {})
	}
}

func TestReplicasCanStartAtOnceOnAnEmptyKafka(t *testing.T) {
	t.Parallel()

	address, group := brokertest.Address(t, brokertest.Kafka), brokertest.Topic()

	startAtOnce(t, 4, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(address, ",")
		c.Broker.Kafka.Group, c.Broker.Kafka.Prefix, c.Broker.Kafka.Partitions = group, group+".", 2
	})
}
