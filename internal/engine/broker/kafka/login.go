package kafka

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/xdg-go/scram"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

// secure configures encryption and the login. Token requests end with ctx.
func (d *Driver) secure(ctx context.Context, cfg *sarama.Config) (err error) {
	if d.cfg.TLS {
		cfg.Net.TLS.Enable = true

		if cfg.Net.TLS.Config, err = tlsconfig.New(d.cfg.CAFile); err != nil {
			return fmt.Errorf("broker.kafka.ca_file: %w", err)
		}

		if err := tlsconfig.Present(cfg.Net.TLS.Config, d.cfg.CertFile, d.cfg.KeyFile); err != nil {
			return fmt.Errorf("broker.kafka.cert_file: %w", err)
		}
	}

	if d.cfg.User == "" {
		return nil
	}

	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.Mechanism = sarama.SASLMechanism(d.cfg.SASLMechanism)
	cfg.Net.SASL.User, cfg.Net.SASL.Password = d.cfg.User, string(d.cfg.Password)

	switch d.cfg.SASLMechanism {
	case sarama.SASLTypeSCRAMSHA256:
		cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: sha256.New} }
	case sarama.SASLTypeSCRAMSHA512:
		cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: sha512.New} }
	case sarama.SASLTypeOAuth:
		cfg.Net.SASL.TokenProvider, err = d.tokens.until(ctx, d.cfg)
	}

	return err
}

// scramClient adapts xdg-go/scram to sarama, which has no SCRAM implementation.
type scramClient struct {
	hash         scram.HashGeneratorFcn
	conversation *scram.ClientConversation
}

func (c *scramClient) Begin(user, password, authzID string) error {
	client, err := c.hash.NewClient(user, password, authzID)
	if err != nil {
		return err
	}

	c.conversation = client.NewConversation()

	return nil
}

func (c *scramClient) Step(challenge string) (string, error) { return c.conversation.Step(challenge) }

func (c *scramClient) Done() bool { return c.conversation.Done() }

// tokenTimeout bounds a token request.
const tokenTimeout = 10 * time.Second

// tokens is the source of access tokens for all connections, so that they share a token
// until shortly before it expires.
type tokens struct {
	mu     sync.Mutex
	source oauth2.TokenSource
}

// until returns the source for connections that end with ctx.
func (t *tokens) until(ctx context.Context, cfg Config) (sarama.AccessTokenProvider, error) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.source == nil {
		settings, err := tlsconfig.Trusting(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("broker.kafka.ca_file: %w", err)
		}

		client := &http.Client{
			Timeout:   tokenTimeout,
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: settings, DisableKeepAlives: true},
		}
		grant := clientcredentials.Config{ClientID: cfg.User, ClientSecret: string(cfg.Password), TokenURL: cfg.TokenURL, Scopes: cfg.Scopes}
		t.source = grant.TokenSource(context.WithValue(context.Background(), oauth2.HTTPClient, client))
	}

	return tokensUntil{ctx, t.source}, nil
}

// tokensUntil is a source of tokens for connections that end with ctx.
type tokensUntil struct {
	ctx    context.Context //nolint:containedctx // it is a lifetime, not a request
	source oauth2.TokenSource
}

// Token implements sarama.AccessTokenProvider.
func (t tokensUntil) Token() (*sarama.AccessToken, error) {
	type result struct {
		token *oauth2.Token
		err   error
	}

	answer := make(chan result, 1)

	go func() {
		token, err := t.source.Token()
		answer <- result{token, err}
	}()

	select {
	case <-t.ctx.Done():
		return nil, fmt.Errorf("broker.kafka.token_url: requesting a token: %w", t.ctx.Err())
	case r := <-answer:
		if r.err != nil {
			return nil, refusalOfToken(r.err)
		}

		return &sarama.AccessToken{Token: r.token.AccessToken}, nil
	}
}

// refusalOfToken returns a token request's error. It is a refusal if the endpoint
// does not accept the request, unless the endpoint only asks us to wait.
func refusalOfToken(err error) error {
	answer, answered := errors.AsType[*oauth2.RetrieveError](err)
	if !answered {
		return fmt.Errorf("broker.kafka.token_url: requesting a token: %w", err)
	}

	// Omit the body: it may be HTML.
	text := strings.TrimSpace(strings.Join([]string{answer.Response.Status, answer.ErrorCode, answer.ErrorDescription}, " "))
	err = fmt.Errorf("authentication failed: the token endpoint answered %s", text)

	if status := answer.Response.StatusCode; status >= http.StatusInternalServerError || status == http.StatusTooManyRequests {
		return err
	}

	return &driver.RefusedError{
		Scope:  driver.Account,
		Remedy: "correct broker.kafka.user (the client id), broker.kafka.password (its secret), broker.kafka.scopes or broker.kafka.token_url",
		Err:    err,
	}
}
