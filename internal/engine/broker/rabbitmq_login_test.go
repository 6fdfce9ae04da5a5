package broker_test

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// TestCertificatesOnRabbitMQ runs against a RabbitMQ server that requires certificates.
func TestCertificatesOnRabbitMQ(t *testing.T) {
	t.Parallel()

	authority := brokertest.NewAuthority(t)
	server, port := brokertest.NewRabbitMQ(t, authority)
	server.Do("ctl", "eval", `
		rabbit_vhost:add(<<"sales">>, <<"test">>), rabbit_auth_backend_internal:add_user(<<"shop">>, <<"secret">>, <<"test">>),
		rabbit_auth_backend_internal:set_permissions(<<"shop">>, <<"sales">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`)

	// config returns a configuration with a certificate for the name.
	config := func(t *testing.T, url string, issuer *brokertest.Authority, name string) broker.Config {
		t.Helper()

		cfg := rabbitMQHarness(strings.ReplaceAll(url, "HOST", "127.0.0.1:"+port)).config
		cfg.RabbitMQ.CAFile = brokertest.File(t, authority.Certificate)

		if issuer != nil {
			cert, key := issuer.Issue(name)
			cfg.RabbitMQ.CertFile, cfg.RabbitMQ.KeyFile = brokertest.File(t, cert), brokertest.File(t, key)
		}

		return cfg
	}

	const external, plain = "amqps://HOST/sales?auth_mechanism=EXTERNAL", "amqps://shop:secret@HOST/sales"

	for name, url := range map[string]string{"a certificate logs in": external, "a password behind a certificate": plain} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			topic := brokertest.Topic()
			conn := harness{config: config(t, url, authority, "shop")}.open(t, topic)
			received := consume(t, conn, topic, nil)
			must(t, conn.Publisher().Publish(topic, newMessage("k", "1")))
			received.wait(t, 1)
			must(t, conn.Close())
		})
	}

	for name, c := range map[string]struct {
		url         string
		issuer      *brokertest.Authority
		user        string
		why, remedy string
	}{
		"no certificate":              {plain, nil, "", "remote error: tls: ", "broker.rabbitmq.cert_file"},
		"a certificate of a stranger": {plain, brokertest.NewAuthority(t), "shop", "remote error: tls: ", "that the broker trusts"},
		"a name without a user":       {external, authority, "nobody", "authentication failed: no user has the name in the certificate", "create the user"},
		"a vhost that is missing":     {strings.Replace(plain, "sales", "missing", 1), authority, "shop", "authentication failed: NOT_ALLOWED", `create vhost "missing"`},
	} {
		t.Run(name+" is named", func(t *testing.T) {
			t.Parallel()

			namesWhy(t, config(t, c.url, c.issuer, c.user), c.why, c.remedy)
		})
	}
}

// namesWhy checks that a broker's state and log say why it cannot be used, and what to do,
// without Kafka's password.
func namesWhy(t *testing.T, cfg broker.Config, why, remedy string) {
	t.Helper()

	log := &lines{}

	conn, err := broker.New(cfg, slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)

	go func() { ended <- conn.Connect(ctx, nil) }()

	defer func() {
		if t.Failed() {
			t.Logf("state %+v, log %s", conn.State(), log.with(""))
		}
	}()

	pgtest.Eventually(t, "the state says why and what to do", func() bool {
		state := conn.State()

		return !state.Up() && strings.Contains(state.Why, why) && strings.Contains(state.Remedy, remedy)
	})
	pgtest.Eventually(t, "so does the log", func() bool { return len(log.with("level=WARN", quoted(why), quoted(remedy))) > 0 })

	if secret := string(cfg.Kafka.Password); secret != "" && len(log.with(secret)) > 0 {
		t.Errorf("the log reveals the password: %s", log.with(secret))
	}

	cancel()

	select {
	case <-ended:
	case <-time.After(timeout):
		t.Error("connecting does not end")
	}

	must(t, conn.Close())
}

// quoted returns text as it stands in a quoted value of a log.
func quoted(text string) string { return strings.Trim(strconv.Quote(text), `"`) }
