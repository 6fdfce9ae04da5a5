// Package oidctest runs a real OpenID Connect provider for tests: Zitadel's, with its
// storage in memory.
package oidctest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
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

	tb    testing.TB
	url   string
	store *directory
}

// secret authenticates every user.
const secret = "a secret of the test"

// Client is an application with which people log in.
type Client struct {
	ID, Secret string
	// Redirects are the addresses that the provider may send a browser back to.
	Redirects []string
	// Opaque is true if its access tokens are not signed.
	Opaque bool
}

// Start runs a provider with users, keyed by sub. Its tokens name issuer, or the provider
// itself if issuer is empty.
func Start(tb testing.TB, issuer string, users map[string]User) *Provider {
	tb.Helper()

	server := httptest.NewUnstartedServer(nil)
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())

	// For a browser, this is another site than 127.0.0.1, where the services of tests are.
	p := &Provider{tb: tb, url: "http://localhost:" + port, Issuer: issuer}
	if p.Issuer == "" {
		p.Issuer = p.url
	}

	p.store = &directory{Storage: storage.NewStorage(people{}), users: users}

	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}, AuthMethodPost: true, CodeMethodS256: true}, p.store, op.StaticIssuer(p.Issuer), op.WithAllowInsecure())
	if err != nil {
		tb.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("/", provider)
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `<!DOCTYPE html><html lang="en"><title>Provider</title><link rel="icon" href="data:,"><form method="post"><label>User <input name="user"></label><input type="hidden" name="id" value="%s"><button>Go on</button></form>`, html.EscapeString(r.FormValue("id")))
	})
	mux.Handle("POST /login", op.NewIssuerInterceptor(provider.IssuerFromRequest).HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := p.store.CheckUsernamePassword(r.FormValue("user"), secret, r.FormValue("id")); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)

			return
		}

		http.Redirect(w, r, op.AuthCallbackURL(provider)(r.Context(), r.FormValue("id")), http.StatusFound)
	}))

	server.Config.Handler = mux
	server.Start()
	tb.Cleanup(server.Close)

	return p
}

// Register makes a client known to the provider, in place of the one before. The provider
// then logs people in who give their sub.
func (p *Provider) Register(c Client) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()

	p.store.registered = c
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

	mu         sync.Mutex
	registered Client
}

// people has whoever somebody claims to be: users are checked when they get a token.
type people struct{}

func (people) GetUserByID(sub string) *storage.User {
	return &storage.User{ID: sub, Username: sub, Password: secret}
}

func (p people) GetUserByUsername(sub string) *storage.User { return p.GetUserByID(sub) }

func (people) ExampleClientID() string { return "" }

// client issues signed tokens instead of opaque ones.
type client struct {
	*storage.Client

	sub string
}

func (c client) GetID() string                     { return c.sub }
func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (client) GrantTypes() []oidc.GrantType        { return []oidc.GrantType{oidc.GrantTypeClientCredentials} }

// application is a Client as the provider knows it.
type application struct {
	*storage.Client

	client Client
}

func (a application) GetID() string           { return a.client.ID }
func (application) LoginURL(id string) string { return "/login?id=" + url.QueryEscape(id) }
func (a application) AccessTokenType() op.AccessTokenType {
	if a.client.Opaque {
		return op.AccessTokenTypeBearer
	}

	return op.AccessTokenTypeJWT
}

func (s *directory) client() Client {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.registered
}

// GetClientByClientID implements op.Storage.
func (s *directory) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	c := s.client()
	if id == "" || id != c.ID {
		return nil, errUnknown
	}

	return application{Client: storage.WebClient(c.ID, c.Secret, c.Redirects...), client: c}, nil
}

// AuthorizeClientIDSecret implements op.Storage.
func (s *directory) AuthorizeClientIDSecret(_ context.Context, id, given string) error {
	if c := s.client(); id != c.ID || given != c.Secret {
		return errUnknown
	}

	return nil
}

// CreateAuthRequest implements op.Storage. It insists on what protects a log-in.
func (s *directory) CreateAuthRequest(ctx context.Context, r *oidc.AuthRequest, sub string) (op.AuthRequest, error) {
	if r.State == "" || r.Nonce == "" || r.CodeChallenge == "" || r.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("state, nonce and an S256 code challenge are required")
	}

	return s.Storage.CreateAuthRequest(ctx, r, sub)
}

// SetUserinfoFromRequest implements op.CanSetUserinfoFromRequest: for ID tokens.
func (s *directory) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, r op.IDTokenRequest, _ []string) error {
	info.Subject = r.GetSubject()

	for name, value := range s.users[info.Subject].Claims {
		info.AppendClaims(name, value)
	}

	return nil
}

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
