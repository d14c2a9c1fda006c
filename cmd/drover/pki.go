package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

func newPKICommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make the certificate authority and the certificates of an installation",
		Long: "Make the certificate authority and the certificates of an installation.\n\n" +
			"One authority per installation; its key stays where it was made. Each agent, each server and each operator gets\n" +
			"a certificate that says who it is; an agent's name is its host's, as in the server's file.",
	}
	cmd.AddCommand(newPKIInitCommand(a), newPKIIssueCommand(a))
	return cmd
}

func newPKIInitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make a certificate authority in a folder",
		Args:  oneArg("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := pki.NewCA(args[0], time.Now())
			if err != nil {
				return err
			}
			return a.issued(certificate{CA: ca.CertFile()}, ca.CertFile())
		},
	}
}

func newPKIIssueCommand(a *app) *cobra.Command {
	var dir, role, name, out string
	var hosts []string
	cmd := &cobra.Command{
		Use:     "issue --ca DIR --role ROLE --name NAME --out DIR",
		Short:   "Issue a certificate",
		Example: "drover pki issue --ca /etc/drover/ca --role agent --name h1 --address 192.0.2.11 --out ./h1",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, f := range []struct{ flag, value, want string }{
				{"--ca", dir, "the folder that drover pki init made"},
				{"--role", role, "server, agent or operator"},
				{"--name", name, "the name of the server, host or person"},
				{"--out", out, "the folder for the certificate and its key"},
			} {
				if f.value == "" {
					return drover.Errorf(drover.Invalid, "", "missing %s: want %s", f.flag, f.want)
				}
			}
			ca, err := pki.LoadCA(dir)
			if err != nil {
				return err
			}
			// A key is never written over: a process may be using it.
			if _, err := os.Stat(filepath.Join(out, name+".key")); err == nil {
				return drover.Errorf(drover.Exists, "issue certificate", "%s holds one for %s already: remove it first", out, name)
			}
			files, err := ca.Issue(pki.Identity{Role: pki.Role(strings.ToLower(role)), Name: name}, hosts, out, time.Now())
			if err != nil {
				return err
			}
			return a.issued(certificate{Role: strings.ToLower(role), Name: name, CA: files.CA, Cert: files.Cert, Key: files.Key}, files.Cert)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&dir, "ca", "", "folder of the certificate authority")
	fl.StringVar(&role, "role", "", "server, agent or operator")
	fl.StringVar(&name, "name", "", "who the certificate is for")
	fl.StringVar(&out, "out", "", "folder for NAME.crt, NAME.key and ca.crt")
	fl.StringArrayVar(&hosts, "address", nil, "address or host name that it shall be valid for, besides its name (repeatable)")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"server", "agent", "operator"}, cobra.ShellCompDirectiveNoFileComp))
	for _, f := range []string{"ca", "out"} {
		_ = cmd.MarkFlagDirname(f)
	}
	return cmd
}

// certificate is the document of the pki commands.
type certificate struct {
	Role    string    `json:"role,omitempty"`
	Name    string    `json:"name,omitempty"`
	CA      string    `json:"ca"`
	Cert    string    `json:"cert,omitempty"`
	Key     string    `json:"key,omitempty"`
	Expires time.Time `json:"expires"`
}

// issued tells of the certificate in the file.
func (a *app) issued(c certificate, file string) (err error) {
	if c.Expires, err = pki.Expiry(file); err != nil {
		return err
	}
	if a.output == formatJSON {
		return a.json(c)
	}
	_, err = fmt.Fprintf(a.out, "%s, valid until %s\n", file, c.Expires.Local().Format(time.DateOnly))
	return err
}
