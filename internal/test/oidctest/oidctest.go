// Package oidctest runs a real OpenID Connect provider for tests: Zitadel's, with its
// storage in memory.
package oidctest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// User is a user known to the provider.
type User struct {
	// Audience is the audience for which the tokens are intended.
	Audience string
	// Claims are in the tokens in addition to the standard claims.
	Claims map[string]any
	// Life is how long tokens are valid; it may be negative.
	Life time.Duration
}

// Provider is a running provider.
type Provider struct {
	// Issuer is the URL in its tokens.
	Issuer string

	tb  testing.TB
	url string
}

// secret authenticates every user.
const secret = "a secret of the test"

// Start runs a provider with users, keyed by sub. Its tokens name issuer, or the provider
// itself if issuer is empty.
func Start(tb testing.TB, issuer string, users map[string]User) *Provider {
	tb.Helper()

	server := httptest.NewUnstartedServer(nil)

	p := &Provider{tb: tb, url: "http://" + server.Listener.Addr().String(), Issuer: issuer}
	if p.Issuer == "" {
		p.Issuer = p.url
	}

	store := &directory{Storage: storage.NewStorage(storage.NewUserStore(p.Issuer)), users: users}

	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}, AuthMethodPost: true}, store, op.StaticIssuer(p.Issuer), op.WithAllowInsecure())
	if err != nil {
		tb.Fatal(err)
	}

	server.Config.Handler = provider
	server.Start()
	tb.Cleanup(server.Close)

	return p
}

// Token returns a new signed access token of a user.
func (p *Provider) Token(sub string) string {
	p.tb.Helper()

	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {sub}, "client_secret": {secret}, "scope": {"openid"}}

	request, err := http.NewRequestWithContext(p.tb.Context(), http.MethodPost, p.url+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		p.tb.Fatal(err)
	}

	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		p.tb.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()

	var answer struct {
		AccessToken string `json:"access_token"`
		Error       string `json:"error_description"`
	}

	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || strings.Count(answer.AccessToken, ".") != 2 {
		p.tb.Fatalf("no signed token of %s: %s %v %+v", sub, response.Status, err, answer)
	}

	return answer.AccessToken
}

// directory is the storage from Zitadel's example with the test's users, who request
// tokens as machines do: without a browser.
type directory struct {
	*storage.Storage

	users map[string]User
}

// client issues signed tokens instead of opaque ones.
type client struct {
	*storage.Client

	sub string
}

func (c client) GetID() string                     { return c.sub }
func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (client) GrantTypes() []oidc.GrantType        { return []oidc.GrantType{oidc.GrantTypeClientCredentials} }

var errUnknown = errors.New("there is no such user")

// ClientCredentials implements op.ClientCredentialsStorage.
func (s *directory) ClientCredentials(_ context.Context, sub, given string) (op.Client, error) {
	if _, known := s.users[sub]; !known || given != secret {
		return nil, errUnknown
	}

	return client{Client: storage.WebClient(sub, secret), sub: sub}, nil
}

// ClientCredentialsTokenRequest implements op.ClientCredentialsStorage.
func (s *directory) ClientCredentialsTokenRequest(_ context.Context, sub string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: sub, Audience: []string{s.users[sub].Audience}, Scopes: scopes}, nil
}

// CreateAccessToken implements op.Storage.
func (s *directory) CreateAccessToken(ctx context.Context, request op.TokenRequest) (string, time.Time, error) {
	id, _, err := s.Storage.CreateAccessToken(ctx, request)

	return id, time.Now().Add(s.users[request.GetSubject()].Life), err
}

// GetPrivateClaimsFromScopes implements op.Storage.
func (s *directory) GetPrivateClaimsFromScopes(_ context.Context, sub, _ string, _ []string) (map[string]any, error) {
	return s.users[sub].Claims, nil
}
