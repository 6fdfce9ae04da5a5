//go:build wireinject

package millrace

import (
	"log/slog"

	"github.com/google/wire"

	"github.com/millrace/millrace/internal/account"
	"github.com/millrace/millrace/internal/analytics"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/audit"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/consumer"
	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/httpapi"
	"github.com/millrace/millrace/internal/inventory"
	"github.com/millrace/millrace/internal/maintenance"
	"github.com/millrace/millrace/internal/notification"
	"github.com/millrace/millrace/internal/order"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/parked"
	"github.com/millrace/millrace/internal/payment"
	"github.com/millrace/millrace/internal/poison"
	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/internal/user"
)

// New assembles a service. Nothing connects before its Run. The function that
// it returns releases what the service holds, after Run has returned.
func New(cfg config.Config, logger *slog.Logger) (*app.Service, func(), error) {
	panic(wire.Build(
		wire.FieldsOf(new(config.Config), "Postgres", "Broker", "Consumer", "Inbox", "Outbox", "Payment", "Poison", "Fulfilment",
			"Notification", "Analytics", "Maintenance", "HTTP"),
		telemetry.NewRegistry,
		postgres.NewPool,
		broker.NewSet,
		poison.NewStore,
		parked.NewStore,
		dependency.NewSet,
		outbox.NewRelay,
		consumer.NewRouter,
		httpapi.NewServer,

		order.NewService,
		inventory.NewService,
		payment.NewGateway,
		payment.NewService,
		payment.NewWebhook,
		fulfilment.NewProcess,
		fulfilment.NewSweeper,

		user.NewService,
		account.NewDirectory,
		notification.NewService,
		account.New,
		analytics.NewService,

		audit.New,
		maintenance.New,
		wire.Struct(new(app.Upkeep), "*"),
		wire.Struct(new(app.Domains), "*"),
		app.NewService,
	))
}
