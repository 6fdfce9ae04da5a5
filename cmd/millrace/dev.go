package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/localpg"
)

func newDev(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "dev", Short: "Run the service with a private Postgres and sample stock",
		Long: `Run the service with everything it needs. If no database is configured, a private
Postgres is downloaded and started under ` + devDir + ` (its data is kept). The
schema is migrated, and sample products are put in stock.`,
		Example: "  millrace dev",
	}, func(c *call) error { return runDev(c.ctx, opts, c.out()) })
}

// stopTimeout bounds how long the private Postgres may take to stop.
const stopTimeout = 15 * time.Second

func runDev(ctx context.Context, opts *options, out io.Writer) error {
	cfg, err := opts.load()
	if err != nil {
		return err
	}

	logger := newLogger(cfg)

	if cfg.Postgres.URL == "" {
		server, err := localpg.Start(ctx, devDir, localpg.Options{}, logger)
		if err != nil {
			return err
		}

		defer func() {
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()

			switch used, err := server.StopUnlessUsed(stopCtx); {
			case err != nil:
				logger.Warn(err.Error())
			case used:
				logger.Info("postgres keeps running, because other programs are connected to it")
			}
		}()

		cfg.Postgres.URL = postgres.Secret(server.URL())
	}

	return runService(ctx, cfg, func(service *app.Service) {
		if err := service.Inventory.Seed(ctx, map[string]int64{"product_1": 100, "product_2": 50, "product_3": 25}); err != nil {
			logger.Warn(err.Error())
		}

		program, scheme, console := os.Args[0], "http", ""
		if cfg.HTTP.TLS == httpapi.TLSFiles {
			scheme = "https"
		}

		if cfg.HTTP.Console {
			console = fmt.Sprintf("Console: %s://%s/console/   ", scheme, service.HTTPAddr())
		}

		fmt.Fprintf(out, `
Millrace is running (broker: %s). In another terminal, try:

  %s publish orders.created '{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}'
  %s orders show order_123
  %s stock
  %s publish user.created '{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}'
  %s users show alice
  %s notifications list

%sAPI: %s://%s/api/v1/openapi.json
Health: http://%s/readyz   Metrics: http://%s/metrics
Press Ctrl-C to drain and stop.

`, service.Brokers.Kinds(), program, program, program, program, program, program, console, scheme, service.HTTPAddr(), service.HealthAddr(), service.HealthAddr())
	})
}
