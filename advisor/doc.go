// Package advisor says which method suits a VM on its way to a site, or that it
// should stay, with the reasons for and against each in plain words and figures.
//
// It is a pure function of what is known: the VM's requirements, a forecast for
// each method, what a preflight found, the rule sets in force, and the order in
// which methods are preferred. What things cost is package forecast's to say;
// whether it is worth it is said here. Nothing is asked, moved or remembered.
//
// A method is right when it is feasible and meets the requirements, each in nine
// cases of ten (the forecast's P90). Of those that are right the simplest is the
// advice. The order and why it is so: docs/decisions/0022-advice.md.
package advisor
